"""Run .tflite files with the delegate in this Python. Needs an interpreter of LiteRT and numpy only.

    PYTHON run_tflite.py LIBRARY FOLDER [KEY=VALUE ...]

For every NAME.tflite in FOLDER, the inputs in NAME.npz are fed by name, and the outputs written to NAME.out.npz, or the
error to NAME.error. KEY=VALUE: options of the delegate. Prints how many nodes of each file the delegates took.
"""

import sys
from pathlib import Path

import numpy as np

try:
    from ai_edge_litert.interpreter import Interpreter, load_delegate
except ImportError:
    try:
        from tflite_runtime.interpreter import Interpreter, load_delegate
    except ImportError:
        import tensorflow

        Interpreter, load_delegate = tensorflow.lite.Interpreter, tensorflow.lite.experimental.load_delegate


def outputs_of(file: Path, library: str, options: dict[str, str]) -> tuple[list, int]:
    delegate = load_delegate(library, options)
    interpreter = Interpreter(model_path=str(file), num_threads=1, experimental_delegates=[delegate])
    interpreter.allocate_tensors()
    feeds = np.load(file.with_suffix(".npz"))
    for entry in interpreter.get_input_details():
        interpreter.set_tensor(entry["index"], feeds[entry["name"]])
    interpreter.invoke()
    delegated = sum(operator["op_name"] == "DELEGATE" for operator in interpreter._get_ops_details())
    return [interpreter.get_tensor(entry["index"]) for entry in interpreter.get_output_details()], delegated


def main() -> None:
    library, folder = sys.argv[1], Path(sys.argv[2])
    options = dict(argument.split("=") for argument in sys.argv[3:])
    for file in sorted(folder.glob("*.tflite")):
        try:
            values, delegated = outputs_of(file, library, options)
        except (ValueError, RuntimeError) as error:
            file.with_suffix(".error").write_text(f"{type(error).__name__}: {error}")
            continue
        print(file.name, delegated)
        np.savez(file.with_suffix(".out.npz"), *values)


if __name__ == "__main__":
    main()
