"""Past one machine: the same records, scored by workers of a Ray cluster (extra ``ray``).

Two ways in. ``prm-edge score INPUT -o FOLDER --engine ray`` goes from files to files; a pipeline of
your own puts :func:`score_dataset` between any of Ray Data's readers and writers::

    from prm_edge.ray import score_dataset

    solutions = ray.data.read_parquet("s3://bucket/rollouts/")
    score_dataset(solutions, "my-prm", num_workers=64).write_parquet("s3://bucket/scored/")

Every worker is an actor with one :class:`~prm_edge_runtime.Scorer`. ray is imported by this
package alone, and only when something here is called.
"""

from .dataset import ScoreRows, score_dataset

__all__ = ["ScoreRows", "score_dataset"]
