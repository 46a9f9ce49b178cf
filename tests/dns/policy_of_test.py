"""A small policy that a test can write down: what `Decider` asks for, out of dictionaries."""

import ipaddress

from policy.verdict import ALLOWED, FOREVER, Decision, Reason, Treatment, Verdict


class DictDecider:
    """Names are decided by their longest suffix, addresses by network; one group per client network."""

    def __init__(self, spec=None, generation=1):
        spec = spec or {}
        self.generation = generation
        self.block = {name.encode(): tuple(v) for name, v in spec.get("block", {}).items()}
        self.allow = {name.encode() for name in spec.get("allow", ())}
        self.rewrite = {name.encode(): target for name, target in spec.get("rewrite", {}).items()}
        self.networks = [ipaddress.ip_network(text) for text in spec.get("networks", ())]
        self.groups = spec.get("groups") or [{"group": "all"}]
        self.free = set(spec.get("free", ()))
        """Indexes of groups for which nothing is blocked."""
        self.until = spec.get("until", FOREVER)
        self.by_mac = {bytes.fromhex(mac.replace(":", "")): g for mac, g in spec.get("macs", {}).items()}
        self.clients = {ipaddress.ip_address(text).packed: g for text, g in spec.get("clients", {}).items()}

    def group_of(self, client, mac=b""):
        return self.by_mac.get(mac, self.clients.get(client, 0))

    def decide(self, name, group, now_s):
        if group in self.free:
            return ALLOWED
        labels = name.split(b".")
        for at in range(len(labels)):
            suffix = b".".join(labels[at:])
            if suffix in self.allow:
                return Decision(Verdict.ALLOW, Reason.ALLOW_LIST, "list:allowed")
            if suffix in self.rewrite:
                return Decision(Verdict.REWRITE, Reason.SAFE_SEARCH, "safesearch", self.rewrite[suffix])
            if suffix in self.block:
                rule, *reason = self.block[suffix]
                return Decision(Verdict.BLOCK, Reason[reason[0]] if reason else Reason.CATEGORY, rule)
        return ALLOWED

    def decide_url(self, host, path, group, now_s):
        return self.decide(host, group, now_s)

    def decide_address(self, address, group, now_s):
        if group in self.free:
            return ALLOWED
        ip = ipaddress.ip_address(address)
        for network in self.networks:
            if ip in network:
                return Decision(Verdict.BLOCK, Reason.ADDRESS, "list:addresses")
        return ALLOWED

    def valid_until(self, group, now_s):
        return self.until

    def treatment(self, group):
        return Treatment(**self.groups[group])
