"""Ray's part: replicas as a deployment of Ray Serve, the register as an actor, and the front before them.

Replicas have HTTP servers of their own, and what is heard never passes through Ray: it starts them, gives each its GPU
or cores, watches, replaces and scales them. So Serve's figures come from what replicas say, not from Serve's requests.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
import uvicorn
from ray import serve
from ray.serve.api import RunTarget
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from starlette.applications import Starlette
from starlette.routing import Mount

from csm.config import Environment
from csm.errors import InputError
from csm.web.access import Access
from csm.web.cluster.front import LEARN_SECONDS, Front
from csm.web.cluster.options import ClusterOptions
from csm.web.cluster.passing import LARGEST_MESSAGE
from csm.web.cluster.register import Register, SharedShelf
from csm.web.cluster.roster import FAILED, READY, STARTING, Standing
from csm.web.cluster.scaling import scaled

NAME, NAMESPACE = "csm", "csm"
TELL_SECONDS = 0.25
ASK_SECONDS = 2.0
RETRY_SECONDS = 30.0  # after which a replica that could not start is started again
START_SECONDS = 600.0  # at most, until the first replica takes requests; weights may have to arrive
HOST, PORT = "127.0.0.1", 7860
LATE = "No replica was ready within {:.0f} minutes: see what Ray says of them."
logger = logging.getLogger(__name__)


def register() -> Any:
    """The actor that is this cluster's register, a new one if need be. It outlives the front, and begins again with the
    same secret where its process or its machine dies."""
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=1)(Register)
    options: dict[str, Any] = {"name": f"{NAME}-register", "namespace": NAMESPACE, "get_if_exists": True}
    return actor.options(**options, lifetime="detached").remote(secrets.token_hex(24), Environment.read().voices)


class RayRegister:
    """The register, for the front's event loop."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def standings(self) -> list[Standing] | None:
        return await self._actor.standings.remote()

    async def secret(self) -> str:
        return await self._actor.secret.remote()


class Speaker:
    """A replica as Ray Serve knows it. It has begun when it takes requests, so a rolling change waits for it; one that
    can't load its model says why for `RETRY_SECONDS` and ends, and Serve begins another."""

    async def __init__(self, options: ClusterOptions, generation: float, alone: bool) -> None:  # type: ignore[misc]
        self._options, self._generation, self._alone = options, generation, alone
        self._register = register()
        self._id = secrets.token_hex(4)
        self._replica: Any = None
        self._failed = ""
        self._telling = asyncio.create_task(self._tells())
        await asyncio.to_thread(self._start)
        while self.standing().state == STARTING:
            await asyncio.sleep(TELL_SECONDS)
        if self._failed:
            await asyncio.sleep(RETRY_SECONDS)
            raise RuntimeError(self._failed)

    def _start(self) -> None:
        try:
            self._pin()
            from csm import load
            from csm.web.cluster.replica import Replica

            options = self._options
            generator = load(options.model, options.device, adapter=options.adapter, weights=options.weights)
            secret = ray.get(self._register.secret.remote(), timeout=ASK_SECONDS)
            shelf = SharedShelf(generator.codec_key, self._ask_shelf)
            address = HOST if self._alone else ray.util.get_node_ip_address()
            self._replica = Replica(self._id, generator, address, secret, options.host, shelf)
        except InputError as error:
            self._failed = str(error)
        except Exception as error:
            logger.exception("A replica could not start.")
            self._failed = f"It could not start: {error or type(error).__name__}."

    def _pin(self) -> None:
        """Have cores of its own where whole ones were asked for, next to those of its neighbours on this machine."""
        cores = self._options.cores
        if cores is None or cores != int(cores) or not hasattr(os, "sched_setaffinity"):
            return
        there, count = sorted(os.sched_getaffinity(0)), int(cores)
        first = serve.get_replica_context().rank.local_rank * count % max(1, len(there))
        mine = set((there + there)[first : first + count])
        for thread in os.listdir("/proc/self/task"):
            with suppress(OSError):
                os.sched_setaffinity(int(thread), mine)

    def _ask_shelf(self, *inputs: Any) -> Any:
        return ray.get(self._register.shelf.remote(*inputs), timeout=ASK_SECONDS)

    def standing(self) -> Standing:
        """How it does."""
        if self._failed:
            return Standing(self._id, state=FAILED, trouble=self._failed, generation=self._generation)
        if self._replica is None:
            return Standing(self._id, generation=self._generation)
        return self._replica.standing(self._generation)

    async def _tell(self, standing: Standing) -> None:
        await self._register.tell.remote(standing)

    async def _tells(self) -> None:
        while True:
            try:
                await self._tell(self.standing())
            except Exception as error:
                logger.warning("The register does not answer (%s).", type(error).__name__)
            await asyncio.sleep(TELL_SECONDS)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `scaled` decides from."""
        now = self.standing()
        return {"busy": float(now.speaking + now.waiting), "slots": float(now.slots)}

    async def check_health(self) -> None:
        """Raises where Serve is to replace this replica."""
        if self._replica is not None and (broken := self._replica.broken()):
            raise RuntimeError(broken)

    async def __del__(self) -> None:
        """It leaves: no new jobs, and those that run have as long as is granted."""
        with suppress(Exception):
            if self._replica is not None:
                await asyncio.to_thread(self._replica.leave, self._options.grace)
                await asyncio.sleep(2 * TELL_SECONDS)
                await asyncio.to_thread(self._replica.close)
            self._telling.cancel()


def speakers(options: ClusterOptions, generation: float, alone: bool = False) -> Any:
    """The replicas as a deployment; `alone`, all are on one machine and can be reached from it only."""
    fewest, most = options.range
    actor: dict[str, Any] = {"num_cpus": 0 if options.cores is None else options.cores}
    if options.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0:
        actor["num_gpus"] = 1 / options.share
    if options.threads is not None:
        actor["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": str(options.threads)}}
    scaling = AutoscalingConfig(
        min_replicas=fewest, max_replicas=most, initial_replicas=fewest, metrics_interval_s=1, look_back_period_s=3,
        policy=AutoscalingPolicy(policy_function=scaled),
    )  # fmt: skip
    deployment = serve.deployment(
        Speaker, name="speaker", ray_actor_options=actor, autoscaling_config=scaling, health_check_period_s=2,
        health_check_timeout_s=30, graceful_shutdown_timeout_s=options.grace + 10,
    )  # fmt: skip
    return deployment.bind(options, generation, alone)


def _asgi() -> Starlette:
    """The front, in the only kind of app that Serve's proxy takes."""
    front = Front(RayRegister(register()), Access.of(Environment.read()))
    return Starlette(routes=[Mount("", front)], lifespan=lambda _: front.living())


def application(args: dict[str, Any]) -> Any:
    """Front and replicas as one application of Serve's own: its proxy is before the fronts. They are two, because a
    rolling change replaces them, too, one by one."""
    options = ClusterOptions.read(args)

    front = serve.deployment(
        serve.ingress(_asgi)(), name="front", num_replicas=2, ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=10_000, graceful_shutdown_timeout_s=options.grace + 10,
    )  # fmt: skip
    return front.bind(speakers(options, time.time()))  # Serve starts what is bound


def run(options: ClusterOptions, port: int | None, tell: Callable[[str], None]) -> None:
    """Replicas on this machine or on the Ray cluster that `RAY_ADDRESS` names, and the front in this process, until it
    is stopped; `tell` is told the news, a sentence each. Raises `InputError` where no replica can start, and `OSError`
    for a port that is taken."""
    environment = Environment.read()
    host, port = options.host or environment.listens_at or HOST, port or environment.listens_on or PORT
    with socket.create_server((host, port)):  # before all that takes long
        pass
    if not environment.ray_address:
        _check_cores(options)
    alone = environment.ray_address is None
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a change to come in how Ray hides GPUs
        # "local", or it would be a part of whatever cluster of Ray's runs on this machine already
        ours: dict[str, Any] = {
            "address": "local",
            "include_dashboard": False,
            "_system_config": {"worker_niceness": 0},
        }
        where = ours if alone else {"address": environment.ray_address}
        ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **where)
    actor = register()
    try:
        serve.start(http_options={"location": "NoServer"}, logging_config={"log_level": "ERROR"})
        replicas = RunTarget(target=speakers(options, time.time(), alone), name=NAME, route_prefix=None)
        serve.run_many([replicas], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
        _wait_for_some(actor, options.range[0])
        front = Front(RayRegister(actor), Access.of(environment, options.host))
        asyncio.run(_listen(front, host, port, options.grace, tell))
    finally:
        for end in (lambda: serve.delete(NAME), lambda: ray.kill(actor), ray.shutdown):  # others may serve there, too
            with suppress(Exception):
                end()


def _check_cores(options: ClusterOptions) -> None:
    there, most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(), options.range[1]
    if options.cores is not None and there and most * options.cores > there:
        told = f"{most} replicas with {options.cores:g} cores each don't fit: this machine has {there}."
        raise InputError(f"{told} Give fewer with --cores.")


def _wait_for_some(actor: Any, fewest: int) -> None:
    """Until as many replicas as were asked for take requests or have failed. Raises `InputError` where all failed."""
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up:
        there = ray.get(actor.standings.remote()) or []
        ready, failed = ([one for one in there if one.state == state] for state in (READY, FAILED))
        if len(ready) + len(failed) >= fewest:
            if ready:
                return
            raise InputError(failed[0].trouble)
        time.sleep(TELL_SECONDS)
    if not any(one.state == READY for one in there):
        raise InputError(LATE.format(START_SECONDS / 60))


async def _listen(front: Front, host: str, port: int, grace: float, tell: Callable[[str], None]) -> None:
    """Serve the front until a signal comes; then no new connections, and those that are open end within `grace`."""
    config = uvicorn.Config(
        front, host, port, log_level="warning", ws_max_size=LARGEST_MESSAGE, ws_per_message_deflate=False,
        timeout_graceful_shutdown=max(1, int(grace)),
    )  # fmt: skip
    server = uvicorn.Server(config)
    tell(f"Running on http://{host}:{port} with replicas behind it; /cluster shows them.")
    watching = asyncio.create_task(_watch(front, tell))
    try:
        await server.serve()
    finally:
        watching.cancel()


async def _watch(front: Front, tell: Callable[[str], None]) -> None:
    """Tell of every replica that comes, fails, has a trouble or goes."""
    known: dict[str, str] = {}
    while True:
        now = {one.id: f"{one.state}{': ' + one.trouble if one.trouble else ''}" for one in front.standings()}
        for id in now.keys() | known.keys():
            if now.get(id) != known.get(id):
                tell(f"Replica {id} is {now.get(id, 'gone')}")
        known = now
        await asyncio.sleep(LEARN_SECONDS)
