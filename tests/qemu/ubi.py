"""In the guest: attaches the simulated NAND, makes a volume `ring`, as ubiattach and ubimkvol do (ubi-user.h)."""

import fcntl
import struct

UBI_IOCATT = 0x40186F40  # _IOW('o', 64, struct ubi_attach_req), 24 octets
UBI_IOCMKVOL = 0x40986F00  # _IOW('o', 0, struct ubi_mkvol_req), 152 octets
DYNAMIC = 3
NUMBER_AUTO = -1


def main() -> None:
    with open("/proc/mtd", encoding="ascii") as file:
        number = next(int(line[3 : line.index(":")]) for line in file if "NAND" in line)
    with open("/dev/ubi_ctrl", "rb") as control:
        fcntl.ioctl(control, UBI_IOCATT, struct.pack("=iiih10x", NUMBER_AUTO, number, 0, 0))
    with open("/sys/class/ubi/ubi0/avail_eraseblocks", encoding="ascii") as file:
        blocks = int(file.read())
    with open("/sys/class/ubi/ubi0/eraseblock_size", encoding="ascii") as file:
        octets = blocks * int(file.read())
    request = struct.pack("=iiqbBh4x128s", NUMBER_AUTO, 1, octets, DYNAMIC, 0, 4, b"ring")
    with open("/dev/ubi0", "rb") as device:
        fcntl.ioctl(device, UBI_IOCMKVOL, request)


main()
