"""What test_workers.py gives to worker processes: importable by name, as a spawned process needs it."""

import os
import time


def make_handler(greeting):
    """A handler that does what a job says."""

    def handle(job):
        match job["do"]:
            case "hang":
                time.sleep(600)
            case "die":
                os._exit(3)
            case "count threads":
                import torch

                return torch.get_num_threads()
            case "eat":
                return len([bytearray(2**28) for _ in range(64)])
        return f"{greeting} {job['name']}"

    return handle


def broken_handler():
    """A worker that cannot start."""
    raise ValueError("no")
