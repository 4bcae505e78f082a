"""`python -m csm bench`: how long the way from script to sound takes on this machine, stated plainly.

`measure.py` times, `costs.py` counts bytes, `accuracy.py` says what fewer bits cost, `peer.py` runs transformers' CSM
on the same weights; `figures.py` puts a machine's figures together, `report.py` and `plot.py` show them. `server.py` is
several listeners of a server: what comes of all that over HTTP.
"""

from csm.bench.accuracy import quantisation_loss
from csm.bench.command import add_arguments, run
from csm.bench.figures import bench
from csm.bench.measure import Workload

__all__ = ["Workload", "add_arguments", "bench", "quantisation_loss", "run"]
