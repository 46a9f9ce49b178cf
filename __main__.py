"""`python3 -I DIRECTORY ROLE`: what procd, the lab and /usr/bin/gatehouse start."""

from agent.__main__ import main

raise SystemExit(main())
