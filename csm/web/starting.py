"""A start that takes as long as it takes: Gradio gives its server five seconds and then says that the port is taken,
which on a busy machine is neither true nor the end of that server."""

from __future__ import annotations

import time

from gradio import http_server
from gradio.exceptions import ServerFailedToStartError


class PatientServer(http_server.Server):
    """Waits until it is up or has given up by itself."""

    def run_in_thread(self) -> None:
        try:
            super().run_in_thread()
        except ServerFailedToStartError:
            while not self.started:
                if not self.thread.is_alive():
                    raise
                time.sleep(0.01)
