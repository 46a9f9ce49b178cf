"""`make stop`: take the lab that `make run` left up down."""

from tests.lab.lab import ROOT, Lab

directory = ROOT / "build" / "lab"
if (directory / "lab.pid").exists():
    Lab(directory).stop()
    (directory / "lab.pid").unlink()
    print("lab: down")
else:
    print("lab: not up")
