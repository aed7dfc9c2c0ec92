"""Light work in a worker process: one thing alone, or several together in threads.

Light jobs read, hash and write a few small objects: they mostly wait for S3, and nothing in them
decodes. So they share a process and its limits while all goes as usual; what meets a limit there
is done again alone, with limits of its own.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cache

from waveflow_ray.aws.kept import forget, keep
from waveflow_ray.aws.s3 import bucket_of
from waveflow_ray.errors import ErrorCode, JobError
from waveflow_ray.jobs import perform
from waveflow_ray.jobs.standing import standing
from waveflow_ray.jobs.work import HARD_STOP_GRACE_S, STDERR, Work, memory_limit
from waveflow_ray.logs import configure_logging
from waveflow_ray.runtime.lightwork import IN_A_TASK, Do, Keep, LightWork, Result
from waveflow_ray.settings import Settings

GATHER_S = 0.05
"""When one is done, the others may be so in a moment: each message to the ingress costs CPU."""


@cache
def _threads() -> ThreadPoolExecutor:
    """Of this process; they stay, as making ten costs as much as half a job."""
    return ThreadPoolExecutor(IN_A_TASK, thread_name_prefix="light")


def do_alone(work: LightWork, settings: Settings) -> Result:
    """Do one thing, with all limits."""
    configure_logging(settings.log_level, settings.log_format)
    return _do(work, settings, alone=True)


def do_together(
    group: Sequence[LightWork], settings: Settings
) -> Iterator[list[tuple[int, Result]]]:
    """Do several things at the same time; yields those that are done, as they are done.

    Nobody waits for a long one but itself. A thread cannot be stopped: if the time limit passes,
    the process ends, and what was not done is started again, each alone.
    """
    configure_logging(settings.log_level, settings.log_format)
    limit_s = settings.job_timeout_s + HARD_STOP_GRACE_S
    faulthandler.dump_traceback_later(limit_s, exit=True, file=STDERR)
    try:
        with memory_limit(settings.job_memory_mb):
            left: dict[Future[Result], int] = {
                _threads().submit(_do, work, settings, alone=False): number
                for number, work in enumerate(group)
            }
            while left:
                wait(left, return_when=FIRST_COMPLETED)
                done = wait(left, timeout=GATHER_S).done
                yield [(left.pop(future), _result(future)) for future in done]
    finally:
        faulthandler.cancel_dump_traceback_later()


def _result(future: Future[Result]) -> Result:
    """None for what broke: alone it may do better, or fail with a better account."""
    return None if future.exception() is not None else future.result()


def _do(work: LightWork, settings: Settings, *, alone: bool) -> Result:
    if isinstance(work, Do):
        means = Work(settings)
        outcome = perform(work.job, settings, work=means, in_worker=alone)
        # Nothing here decodes, so it was the memory limit, which the others share.
        if outcome.error and outcome.error.code is ErrorCode.UNDECODABLE_AUDIO and not alone:
            return None
        return standing(work.job, outcome, means.bucket, again=work.again)
    bucket = bucket_of(settings)
    try:
        if isinstance(work, Keep):
            return keep(bucket, work.webhook)
        forget(bucket, work.webhook)
    except JobError as error:
        return error
    return work.webhook
