"""Shared by all tests: quiet threads before torch wakes up, and where the real pictures are."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes of one thread each are faster than one of several
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing may download


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real pictures named by VLNOTES_REALDATA; tests that need it skip where it is not set."""
    folder = os.environ.get("VLNOTES_REALDATA")
    if not folder:
        pytest.skip("set VLNOTES_REALDATA to a folder with coco_cc_mini/ and emoji_dev/ to test on real pictures")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"VLNOTES_REALDATA names {path}, which is no folder")
    return path
