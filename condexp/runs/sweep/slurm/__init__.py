"""A sweep as a Slurm array by submitit: submit, the job on its node, watch."""
