"""`make shell-client`: a shell on one of the lab's computers, a pupil's unless another is named."""

import os
import sys

from tests.lab.lab import ROOT, Lab

who = sys.argv[1] if len(sys.argv) > 1 else "pupil1"
directory = ROOT / "build" / "lab"
if not (directory / "lab.pid").exists() or not Lab(directory).is_up:
    sys.exit("lab: not up; start it with `make run`")
print(f"you are {who}; try: dig www.casino.example, curl http://www.example.org/; leave with exit")
command = [*Lab(directory).prefix(who), "env", f"PS1={who}$ ", f"CURL_CA_BUNDLE={directory}/ca.crt", "bash", "--norc"]
os.execvp(command[0], command)
