"""eBPF machine code, put together from Python: no compiler is on a router, and none is needed. Pure.

Names are those of the kernel's documentation, lower case: `r0` to `r10`, sizes b, h, w, dw, jumps jeq to jset.
Source: Documentation/bpf/standardization/instruction-set.rst (RFC 9669); include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import sys
from struct import Struct
from typing import Final


class Register(int):
    """An operand that is a register, where a plain int would be a constant."""


R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = map(Register, range(11))
SIZES: Final = {"w": 0x00, "h": 0x08, "b": 0x10, "dw": 0x18}
_OPERATIONS: Final = {
    "add": 0x00, "sub": 0x10, "mul": 0x20, "div": 0x30, "or": 0x40, "and": 0x50, "lsh": 0x60, "rsh": 0x70,
    "mod": 0x90, "xor": 0xA0, "mov": 0xB0,
}  # fmt: skip
_JUMPS: Final = {
    "jeq": 0x10, "jgt": 0x20, "jge": 0x30, "jset": 0x40, "jne": 0x50, "jlt": 0xA0, "jle": 0xB0,
}  # fmt: skip
_ALU64, _ALU32, _JMP, _JMP32, _LDX, _STX, _ST = 0x07, 0x04, 0x05, 0x06, 0x61, 0x63, 0x62
_REGISTER: Final = 0x08
_SIGN: Final = 1 << 31
_PSEUDO_MAP_FD, _PSEUDO_MAP_VALUE = 1, 2
_INSTRUCTION: Final = Struct("=BBhi")
_IS_LITTLE: Final = sys.byteorder == "little"


class Assembler:
    """Instructions one by one; `code` resolves the labels. Operands: a `Register`, or a constant of 32 bits."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int | str, int]] = []
        """Opcode, destination, source, offset or the label to go to, constant."""
        self._labels: dict[str, int] = {}
        self._count = 0

    def label(self, name: str) -> None:
        """Here is `name`. Raises: ValueError if it is somewhere else already."""
        if name in self._labels:
            raise ValueError(f"label {name!r} stands twice")
        self._labels[name] = len(self._code)

    def fresh(self, stem: str) -> str:
        """A label's name that is not in use."""
        self._count += 1
        return f"{stem}.{self._count}"

    def op(self, name: str, target: Register, operand: int, *, bits: int = 64) -> None:
        """`target = target NAME operand`; 32 bits clear the upper half."""
        kind = _ALU64 if bits == 64 else _ALU32
        if isinstance(operand, Register):
            self._put(kind | _REGISTER | _OPERATIONS[name], target, operand)
        else:
            self._put(kind | _OPERATIONS[name], target, constant=operand)

    def constant(self, target: Register, value: int) -> None:
        """`target = value`, 64 bits."""
        self._put(0x18, target, constant=value & 0xFFFFFFFF)
        self._put(0, constant=value >> 32 & 0xFFFFFFFF)

    def map(self, target: Register, fd: int) -> None:
        """`target` = the map behind this descriptor."""
        self._put(0x18, target, _PSEUDO_MAP_FD, constant=fd)
        self._put(0)

    def map_value(self, target: Register, fd: int) -> None:
        """`target` = where the only element of the array behind this descriptor lies."""
        self._put(0x18, target, _PSEUDO_MAP_VALUE, constant=fd)
        self._put(0)

    def to_big(self, target: Register, bits: int) -> None:
        """The lowest 16, 32 or 64 bits between this machine's byte order and the network's; the rest is cleared."""
        self._put(0xDC, target, constant=bits)

    def to_little(self, target: Register, bits: int) -> None:
        """The same between this machine's byte order and little endian."""
        self._put(0xD4, target, constant=bits)

    def load(self, size: str, target: Register, base: Register, offset: int = 0) -> None:
        """`target = *(size *)(base + offset)`."""
        self._put(_LDX | SIZES[size], target, base, offset)

    def store(self, size: str, base: Register, offset: int, operand: int) -> None:
        """`*(size *)(base + offset) = operand`."""
        if isinstance(operand, Register):
            self._put(_STX | SIZES[size], base, operand, offset)
        else:
            self._put(_ST | SIZES[size], base, 0, offset, operand)

    def jump(self, name: str, left: Register, right: int, label: str, *, bits: int = 64) -> None:
        """Go to `label` if `left NAME right`, unsigned."""
        kind = _JMP if bits == 64 else _JMP32
        if isinstance(right, Register):
            self._put(kind | _REGISTER | _JUMPS[name], left, right, label)
        else:
            self._put(kind | _JUMPS[name], left, 0, label, right)

    def go(self, label: str) -> None:
        self._put(_JMP, 0, 0, label)

    def call(self, helper: int) -> None:
        """`r0 = helper(r1 .. r5)`; r1 to r5 are lost."""
        self._put(0x85, constant=helper)

    def exit(self) -> None:
        """Return r0."""
        self._put(0x95)

    def code(self) -> bytes:
        """Raises: ValueError for a label that is nowhere, or too far away."""
        return b"".join(map(self._encoded, range(len(self._code)), self._code))

    def _put(self, opcode: int, target: int = 0, source: int = 0, offset: int | str = 0, constant: int = 0) -> None:
        self._code.append((opcode, target, source, offset, constant))

    def _encoded(self, at: int, instruction: tuple[int, int, int, int | str, int]) -> bytes:
        opcode, target, source, offset, constant = instruction
        if isinstance(offset, str):
            if offset not in self._labels:
                raise ValueError(f"label {offset!r} is nowhere")
            offset = self._labels[offset] - at - 1
        if not -32768 <= offset <= 32767:
            raise ValueError(f"instruction {at} goes {offset} instructions far")
        registers = source << 4 | target if _IS_LITTLE else target << 4 | source
        signed = (constant & 0xFFFFFFFF ^ _SIGN) - _SIGN
        return _INSTRUCTION.pack(opcode, registers, offset, signed)
