"""The cells of a mix as Ray tasks, their windows gathered as they come."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from waveflow_ray.audio.cell import CellEnd, CellOutput
from waveflow_ray.audio.plan import Cell
from waveflow_ray.errors import ErrorCode, JobError, internal_error
from waveflow_ray.jobs.mix import Render, cell_outputs
from waveflow_ray.jobs.work import TimeUp, Work, memory_limit, time_limit, too_much_memory
from waveflow_ray.runtime.placement import CELL, CELLS_AHEAD, LOST_WORKER, STREAMED, TRIES
from waveflow_ray.settings import Settings

logger = logging.getLogger(__name__)

STARVED_S = 20.0
"""A cell that runs has something to show sooner."""


def do_cell(cell: Cell, settings: Settings) -> Iterator[CellOutput | JobError]:
    """A cell of a mix, in a worker process. A JobError comes as the last item."""
    began = time.process_time()
    try:
        with (
            time_limit(settings.job_timeout_s, hard=True),
            memory_limit(settings.job_memory_mb),
        ):
            for output in cell_outputs(cell, Work(settings), _this_node()):
                if isinstance(output, CellEnd):
                    output = replace(output, cpu_s=time.process_time() - began)
                yield output
    except JobError as error:
        yield error
    except MemoryError:
        yield too_much_memory(settings, _names(cell))
    except TimeUp:
        yield JobError(ErrorCode.TIMEOUT, "A stem took too long to decode.", _names(cell))


def do_window(cell: Cell, settings: Settings) -> list[CellOutput | JobError]:
    """A cell that is one window: all that it yields at once, which Ray does in less time."""
    return list(do_cell(cell, settings))


group_task: Any = ray.remote(**CELL, **STREAMED)(do_cell)
window_task: Any = ray.remote(**CELL)(do_window)


@dataclass
class Running:
    """A cell that a task is at work on: windows received so far, tasks started for it."""

    index: int
    cell: Cell
    windows_done: int = 0
    starts: int = 1


def render_on_ray(settings: Settings, parallelism: int) -> Render:
    """Runs a mix's cells as Ray tasks; windows come as they are ready, from any cell.

    If nothing comes for a while, every CPU may be held by mixes that wait as this one does, on a
    cluster that has lost nodes. Then a cell is done here.

    Args:
        parallelism: how many cells run at a time.
    """

    def render(cells: Sequence[Cell]) -> Iterator[tuple[int, CellOutput]]:
        settings_ref = ray.put(settings)

        def start(cell: Cell) -> Any:
            task = group_task if cell.window is None else window_task
            return task.options(name="mix cell").remote(cell, settings_ref)

        waiting = iter(enumerate(cells))
        live: dict[Any, Running] = {}
        try:
            while True:
                while len(live) < parallelism + CELLS_AHEAD:
                    if (following := next(waiting, None)) is None:
                        break
                    live[start(following[1])] = Running(*following)
                if not live:
                    return
                ready: list[Any] = ray.wait(
                    list(live), num_returns=1, timeout=STARVED_S, fetch_local=False
                )[0]
                if not ready:
                    task = next(iter(live))
                    starved = live.pop(task)
                    ray.cancel(task, force=True)
                    logger.warning("a mix cell is done where the mix is: no task has begun")
                    rest = starved.cell.resumed(starved.windows_done)
                    for output in cell_outputs(rest, Work(settings), _this_node()):
                        yield starved.index, output
                    continue
                running = live.pop(ready[0])
                is_window = running.cell.window is not None
                try:
                    items = ray.get(ready[0]) if is_window else [ray.get(next(ready[0]))]
                except ray.exceptions.RayError as error:
                    if running.starts >= TRIES:
                        raise _cell_lost(running.cell, error) from error
                    again = running.cell.resumed(running.windows_done)
                    logger.warning("a mix cell is started again at window %d", again.skip)
                    running.starts += 1
                    live[start(again)] = running
                    continue
                for item in items:
                    if isinstance(item, JobError):
                        raise item
                    if not isinstance(item, CellEnd):
                        running.windows_done = item[0] + 1
                        if not is_window:
                            live[ready[0]] = running
                    yield running.index, item
        finally:
            for task in live:
                ray.cancel(task, force=True)

    return render


def _this_node() -> str:
    return f"{platform.node()}/{ray.get_runtime_context().get_node_id()[:6]}"


def _cell_lost(cell: Cell, error: Exception) -> JobError:
    if isinstance(error, LOST_WORKER):
        return JobError(
            ErrorCode.WORKER_CRASHED,
            f"One of these stems stopped the program that reads it: {_names(cell)}.",
            str(error)[:500],
        )
    return internal_error(f"{_names(cell)}: {type(error).__name__}: {str(error)[:500]}")


def _names(cell: Cell) -> str:
    return ", ".join(part.stem.name.rsplit("/", 1)[-1] for part in cell.parts)
