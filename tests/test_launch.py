import os

import launch
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig
from tensorflow.python.eager import context

# TensorFlow's own texts: of a step in a graph, of a single operation, and of a write.
IN_A_GRAPH = (
    "Graph execution error:\n\nDetected at node model/Conv2D defined at (most recent call last):\n"
    '  File "detector/training_step.py", line 1, in step\n'
    "OOM when allocating tensor with shape[2,512,64,64] and type float on /job:localhost/replica:0/task:0/"
    "device:GPU:0 by allocator GPU_0_bfc\n\t [[{{node model/Conv2D}}]]\nHint: If you want to see a list"
)
ALONE = "{{function_node __wrapped__AddV2_device_CPU:0}} failed to allocate memory [Op:AddV2] name: "
FULL_DISK = "{{function_node __wrapped__SaveV2}} runs/a/events.v2; No space left on device [Op:SaveV2]"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (IN_A_GRAPH, "out of memory (OOM when allocating tensor with shape[2,512,64,64] and type float on "),
        (ALONE, "out of memory (failed to allocate memory): lower train.batch_size"),
        (FULL_DISK, "runs/a/events.v2; No space left on device\n"),
    ],
    ids=["in a graph", "alone", "a full disk"],
)
def test_what_ran_out_is_one_line(message, shown, capsys):
    def fail():
        raise tf.errors.ResourceExhaustedError(None, None, message)

    assert launch.run(fail) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {shown}") and error.count("\n") == 1
    is_memory = message != FULL_DISK
    for remedy in (
        "train.batch_size",
        "model.resizer",
        "train.recompute",
        "freeze",
        "model.precision=bfloat16",
    ):
        assert (remedy in error) == is_memory


@pytest.mark.parametrize("is_too_late", [False, True])
def test_of_gpus_as_much_memory_is_taken_as_is_needed(is_too_late, monkeypatch):
    grown = []

    def grow(gpu, enable):
        grown.append((gpu, enable))
        if is_too_late:
            raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [f"{kind}:0", f"{kind}:1"])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", grow)
    monkeypatch.setenv("TF_FORCE_GPU_ALLOW_GROWTH", "")  # to be put back
    monkeypatch.delenv("TF_FORCE_GPU_ALLOW_GROWTH")
    launch.settle_process.__wrapped__()
    assert grown == [("GPU:0", True), ("GPU:1", True)]
    assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"  # for a benchmark's peers


def test_graphs_are_rewritten_once_and_without_the_memory_optimizer():
    def settings() -> tuple[int, int]:
        config = context.context().function_call_options.config_proto_serialized
        rewriters = tf.compat.v1.ConfigProto.FromString(config).graph_options.rewrite_options
        return rewriters.memory_optimization, rewriters.meta_optimizer_iterations

    before = settings()
    launch.settle_process.__wrapped__()
    try:
        assert before == (RewriterConfig.DEFAULT_MEM_OPT, RewriterConfig.DEFAULT_NUM_ITERS)
        assert settings() == (RewriterConfig.NO_MEM_OPT, RewriterConfig.ONE)
    finally:
        tf.config.optimizer.set_experimental_options({})  # which takes it back
    assert settings() == before
