"""The embedded language model's own process: llama.cpp's server on loopback, until whoever started it goes.

It is run by its path and imports nothing of this project, so that it takes no more memory than it needs. One line of
JSON comes in, one goes out; where standard input ends, so does it.
"""

import json
import os
import sys


def main() -> None:
    """Serve, and say where."""
    asked = json.loads(sys.stdin.readline())
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # llama.cpp prints

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = asked["model"]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [asked["key"]]
    params.cors_origins = ""
    params.n_ctx = asked["positions"]
    params.n_parallel = asked["talks"]
    params.kv_unified = False
    params.cache_ram_mib = asked["cache_mib"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cpuparams.poll = params.cpuparams_batch.poll = 0
    params.n_gpu_layers = 0
    params.n_threads_http = 4
    params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = False
    params.ui = False
    params.warmup = False
    server = xllamacpp.Server(params)
    told.write(json.dumps({"address": server.listening_address}) + "\n")
    told.flush()
    sys.stdin.read()
    os._exit(0)  # its threads would be waited for


if __name__ == "__main__":
    main()
