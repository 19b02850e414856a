"""Whether the machine has bfloat16 in hardware.

Without it TensorFlow emulates it, which is slower than computing in float32.
"""

from dataclasses import dataclass

import tensorflow as tf

from detector.cpu import cpuinfo, instruction_sets

# The names that Linux gives the instructions in /proc/cpuinfo, the fastest first.
_CPU_FLAGS = ("amx_bf16", "avx512_bf16")
# NVIDIA's compute capability from which on there are bfloat16 tensor cores (Ampere).
_GPU_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Bfloat16:
    """Whether `device` has bfloat16 in hardware, None where that cannot be told, and the `evidence`."""

    device: str
    in_hardware: bool | None
    evidence: str

    def advice(self, precision: str) -> str | None:
        """Say in one line what this means for `precision`, "float32" or "bfloat16"; None if nothing."""
        if precision == "bfloat16":
            if self.in_hardware:
                return f"Computes in bfloat16 ({self.device}: {self.evidence}); weights are float32."
            return (
                f"warning: model.precision is bfloat16, but {self.device} "
                f"{'may not' if self.in_hardware is None else 'does not'} compute it ({self.evidence}): "
                "emulated it works, and is slower than model.precision=float32"
            )
        if self.in_hardware:
            return (
                f"{self.device[:1].upper()}{self.device[1:]} computes bfloat16 ({self.evidence}): "
                "with model.precision=bfloat16 all but small detectors train and detect faster here; weights "
                "stay float32."
            )
        return None


def of_this_machine() -> Bfloat16:
    """Look at the device that TensorFlow computes on: the first GPU that it sees, else the CPU."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return of_gpu(tf.config.experimental.get_device_details(gpus[0]).get("compute_capability"))
    return of_cpu(cpuinfo())


def of_cpu(cpuinfo: str | None) -> Bfloat16:
    """Read Linux's /proc/cpuinfo; None where there is none.  Tells of x86 alone."""
    known = instruction_sets(cpuinfo)
    if not known:
        return Bfloat16("this CPU", None, "only /proc/cpuinfo of x86 tells")
    flag = next((flag for flag in _CPU_FLAGS if flag in known), None)
    if flag is None:
        return Bfloat16("this CPU", False, f"it has neither {' nor '.join(_CPU_FLAGS)}")
    return Bfloat16("this CPU", True, flag)


def of_gpu(compute_capability: tuple[int, int] | None) -> Bfloat16:
    """Tell by the GPU's compute capability (major, minor); None for one that has no such thing."""
    if compute_capability is None:
        return Bfloat16("this GPU", None, "it tells no compute capability")
    major, minor = compute_capability
    has = (major, minor) >= _GPU_CAPABILITY
    needed = "" if has else f", and bfloat16 needs {_GPU_CAPABILITY[0]}.{_GPU_CAPABILITY[1]}"
    return Bfloat16("this GPU", has, f"compute capability {major}.{minor}{needed}")
