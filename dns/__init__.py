"""The DNS hook: answers, filters and audits every query of the venue."""
