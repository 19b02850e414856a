"""Run a SavedModel where there is nothing but TensorFlow: `python -I reload_alone.py MODEL INPUTS OUTPUTS`.

A program of its own, which imports nothing of this package: an importable package would be no proof that the
SavedModel does without.  INPUTS is an .npz of what to feed, by SIGNATURE:NAME; OUTPUTS gets what came out, by
SIGNATURE:NAME:OUTPUT.
"""

import sys


def main(model_path: str, inputs_path: str, outputs_path: str) -> None:
    """Feed everything in `inputs_path` to the signature that its key names."""
    # An entry of None makes `import` fail, wherever a package may be installed.
    sys.modules.update(dict.fromkeys(["detector", "data", "tf_keras", "official"]))  # type: ignore[arg-type]

    import numpy as np
    import tensorflow as tf

    model = tf.saved_model.load(model_path)
    outputs = {}
    # Encoded images are pickled: NumPy's own strings lose the zeros at the end of bytes.
    for key, value in np.load(inputs_path, allow_pickle=True).items():
        serve = model.signatures[key.split(":")[0]]
        for name, output in serve(input_tensor=tf.constant(value)).items():
            outputs[f"{key}:{name}"] = output.numpy()
    np.savez(outputs_path, **outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
