"""Which share of the videos a process takes, when several cache into one store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from attrs import frozen

from ..errors import UserError

T = TypeVar("T")


@frozen(kw_only=True)
class Share:
    """Process `rank` of `world`: every `world`-th item, from number `rank` on."""

    rank: int = 0
    world: int = 1

    def of(self, items: Sequence[T]) -> list[T]:
        """Give this process's items of a list that all processes share."""
        return list(items[self.rank :: self.world])

    @property
    def name(self) -> str:
        """A name that sorts by rank, for files."""
        return f"{self.rank:05d}-of-{self.world:05d}"

    def __str__(self) -> str:
        return f"share {self.rank} of {self.world}"


def find_share(rank: int | None, world: int | None, env: Mapping[str, str]) -> Share:
    """Give the share that was asked for, else the launcher's, else all.

    Launchers are torchrun and accelerate (RANK, WORLD_SIZE) and Slurm's srun (SLURM_PROCID,
    SLURM_STEP_NUM_TASKS). A Slurm script outside srun runs once, whatever its number of tasks, so
    that it takes everything.

    Raises:
        UserError: one number is given without the other, is no number, or out of range.
    """
    if rank is not None or world is not None:
        return _checked("--rank", rank, "--world", world)
    if "RANK" in env or "WORLD_SIZE" in env:
        return _from(env, "RANK", "WORLD_SIZE")
    if "SLURM_STEP_ID" in env:
        tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
        return _from(env, "SLURM_PROCID", tasks)
    return Share()


def _from(env: Mapping[str, str], rank: str, world: str) -> Share:
    numbers = [int(env[n]) if env.get(n, "").isdecimal() else None for n in (rank, world)]
    return _checked(rank, numbers[0], world, numbers[1])


def _checked(rank_name: str, rank: int | None, world_name: str, world: int | None) -> Share:
    if rank is None or world is None:
        lacking = rank_name if rank is None else world_name
        raise UserError(f"{rank_name} and {world_name} go together: {lacking} is no number")
    if not 0 <= rank < world:
        raise UserError(f"{rank_name} {rank} of {world_name} {world}: 0 to {world_name} − 1")
    return Share(rank=rank, world=world)
