"""OpenWrt's `uci`, as much of it as our scripts call, over `policy.uci`'s reading and writing of the format.

    uci.py [-q] [-c DIRECTORY] show PACKAGE | get A.B[.C] | set A.B[.C]=V | delete A.B[.C] | commit | revert | batch
Changes wait in DIRECTORY/.PACKAGE.changes until `commit`, as uci's own wait in /tmp/.uci.
"""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

from policy.uci import Section, parse, render


class Uci:
    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)

    def read(self, package: str) -> list[Section]:
        waiting = self.directory / f".{package}.changes"
        path = waiting if waiting.exists() else self.directory / package
        return parse(path.read_text()) if path.exists() else []

    def write(self, package: str, sections: list[Section]) -> None:
        (self.directory / f".{package}.changes").write_text(render(sections))

    def find(self, sections: list[Section], name: str) -> Section | None:
        return next((section for section in sections if name in (section.name, f"@{section.type}[0]")), None)

    def run(self, words: list[str]) -> int:
        match words:
            case ["show", package]:
                for section in self.read(package):
                    print(f"{package}.{section.name}={section.type}")
                    for key, value in section.options.items():
                        texts = (value,) if isinstance(value, str) else value
                        print(f"{package}.{section.name}.{key}=" + " ".join(f"'{text}'" for text in texts))
                return 0
            case ["get", place]:
                package, name, *option = place.split(".")
                section = self.find(self.read(package), name)
                value = None if section is None else section.options.get(option[0]) if option else section.type
                if value is None:
                    return 1
                print(value if isinstance(value, str) else " ".join(value))
                return 0
            case ["set", text]:
                place, _, value = text.partition("=")
                package, name, *option = place.split(".")
                sections = self.read(package)
                section = self.find(sections, name)
                if not option:
                    if section is None:
                        sections.append(Section(value.strip("'"), name, {}, 0))
                elif section is None:
                    return 1
                else:
                    at = sections.index(section)
                    sections[at] = section._replace(options={**section.options, option[0]: value.strip("'")})
                self.write(package, sections)
                return 0
            case ["delete", place]:
                package, name, *option = place.split(".")
                sections = self.read(package)
                section = self.find(sections, name)
                if section is None:
                    return 1
                at = sections.index(section)
                if option:
                    rest = {key: value for key, value in section.options.items() if key != option[0]}
                    sections[at] = section._replace(options=rest)
                else:
                    del sections[at]
                self.write(package, sections)
                return 0
            case ["commit" | "revert" as what, *packages]:
                for path in self.directory.glob(".*.changes"):
                    name = path.name[1:].removesuffix(".changes")
                    if packages and name not in packages:
                        continue
                    if what == "commit":
                        os.replace(path, self.directory / name)
                    else:
                        path.unlink()
                return 0
            case ["batch"]:
                return max([self.run(line.split()) for line in sys.stdin if line.strip()], default=0)
        return 255


def main(words: list[str]) -> int:
    directory = os.environ.get("UCI_CONFIG_DIR", "/etc/config")
    while words and words[0].startswith("-"):
        if words.pop(0) == "-c":
            directory = words.pop(0)
    return Uci(directory).run(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
