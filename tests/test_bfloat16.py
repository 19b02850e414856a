import command_line
import pytest
import tensorflow as tf
from rich.console import Console

from detector import bfloat16
from detector.bfloat16 import of_cpu, of_gpu, of_this_machine
from detector.config import override
from detector.freeze import resolve
from detector.freeze_schedule import FreezeSchedule
from detector.selectors import VariableRow

CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
flags\t\t: fpu avx512f {}avx512_vnni
bugs\t\t: avx512_bf16_erratum

processor\t: 1
flags\t\t: fpu avx512f {}avx512_vnni
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\n"


@pytest.mark.parametrize(
    ("cpuinfo", "in_hardware", "evidence"),
    [
        (CPUINFO.replace("{}", "avx512_bf16 "), True, "avx512_bf16"),
        (CPUINFO.replace("{}", "avx512_bf16 amx_bf16 amx_tile "), True, "amx_bf16"),
        (CPUINFO.replace("{}", ""), False, "it has neither amx_bf16 nor avx512_bf16"),
        (ARM, None, "only /proc/cpuinfo of x86 tells"),
        (None, None, "only /proc/cpuinfo of x86 tells"),
    ],
)
def test_a_cpu_is_known_by_its_flags(cpuinfo, in_hardware, evidence):
    found = of_cpu(cpuinfo)
    assert (found.in_hardware, found.evidence) == (in_hardware, evidence)


@pytest.mark.parametrize(
    ("capability", "in_hardware", "evidence"),
    [
        ((8, 0), True, "compute capability 8.0"),
        ((12, 0), True, "compute capability 12.0"),
        ((7, 5), False, "compute capability 7.5, and bfloat16 needs 8.0"),
        (None, None, "it tells no compute capability"),
    ],
)
def test_a_gpu_is_known_by_its_compute_capability(capability, in_hardware, evidence):
    found = of_gpu(capability)
    assert (found.in_hardware, found.evidence) == (in_hardware, evidence)


def test_the_advice_depends_on_what_is_there_and_what_is_asked_for():
    has, lacks, unknown = of_cpu(CPUINFO.replace("{}", "amx_bf16 ")), of_gpu((7, 0)), of_cpu(None)
    assert has.advice("float32") == (
        "This CPU computes bfloat16 (amx_bf16): with model.precision=bfloat16 all but small detectors train "
        "and detect faster here; weights stay float32."
    )
    assert has.advice("bfloat16") == "Computes in bfloat16 (this CPU: amx_bf16); weights are float32."
    assert lacks.advice("float32") is None and unknown.advice("float32") is None
    assert lacks.advice("bfloat16").startswith(
        "warning: model.precision is bfloat16, but this GPU does not compute it (compute capability 7.0"
    )
    assert "this CPU may not compute it" in unknown.advice("bfloat16")


def test_a_gpu_counts_before_the_cpu(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    details = {"compute_capability": (7, 5)}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    assert of_this_machine() == of_gpu((7, 5))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert of_this_machine().device == "this CPU"


def test_the_plan_says_what_the_machine_has(monkeypatch, capsys):
    monkeypatch.setattr(command_line, "print_plan", lambda *arguments: None)
    monkeypatch.setattr(bfloat16, "of_this_machine", lambda: of_gpu((7, 0)))
    schedule = FreezeSchedule.of(resolve([VariableRow("rpn/conv/kernel", (1,), True)]))
    for precision, lines in (("bfloat16", 1), ("float32", 0)):
        config = override({}, [f"model.precision={precision}"], "test")
        command_line.print_schedule(Console(), config, None, schedule)
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == lines and all("warning: model.precision is" in line for line in printed)
