"""``python -m tests.gpu.allocation BYTES``: takes BYTES of the first GPU that CUDA shows and says "taken"; at a line on
standard input it gives them back and says "given back"; at the end of its input it ends.

By CUDA's driver API (libcuda, part of the driver), so that nothing has to be installed for it.
"""

import ctypes
import sys


def take(size: int) -> None:
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()

    def do(name: str, *arguments: object) -> None:
        if code := getattr(cuda, name)(*arguments):
            raise RuntimeError(f"{name} failed with CUDA's error {code}")

    do("cuInit", 0)
    do("cuDeviceGet", ctypes.byref(device), 0)
    do("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    do("cuCtxSetCurrent", context)
    do("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(size))
    print("taken", flush=True)
    sys.stdin.readline()
    do("cuMemFree_v2", memory)
    print("given back", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    take(int(sys.argv[1]))
