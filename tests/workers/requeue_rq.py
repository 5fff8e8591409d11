"""Run again what a killed RQ worker had begun, as docs/queues.md says.

RQ itself notices when the job's timeout is over; here, its clock is ahead.
"""

from __future__ import annotations

import time

import django


def main() -> None:
    """Move abandoned jobs to the failed ones, and queue those again."""
    django.setup()
    import django_rq
    from django_tasks_rq import Job

    queue = django_rq.get_queue("default", job_class=Job)
    queue.started_job_registry.cleanup(time.time() + 3600)
    failed = queue.failed_job_registry
    for job_id in failed.get_job_ids():
        failed.requeue(job_id)


if __name__ == "__main__":
    main()
