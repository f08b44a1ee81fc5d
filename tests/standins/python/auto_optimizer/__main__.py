"""A stand-in for ``python -m auto_optimizer optimize IN OUT -k 4``: texts, exit codes and defects
of the real tool.

It knows one thing: indices of Gather that are 64-bit constants become 32-bit ones. STANDIN_FAULT
chooses a defect.
"""

import os
import sys

FAULT = os.environ.get("STANDIN_FAULT", "")


def main(command, source, target, *options):
    if FAULT == "opt-mapping":  # 4.3 (a): with onnx >= 1.19
        raise ModuleNotFoundError("No module named 'onnx.mapping'")
    if command != "optimize" or list(options) != ["-k", "4"]:
        print("Error: Invalid value", file=sys.stderr)
        sys.exit(2)
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = onnx.load(source)
    indices = {node.input[1] for node in model.graph.node if node.op_type == "Gather"}
    changed = 0
    for tensor in model.graph.initializer:
        if tensor.name in indices and tensor.data_type == onnx.TensorProto.INT64:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.int32), tensor.name)
            )
            changed += 1
    if FAULT == "opt-payload":  # 4.3 (c): the type changes, the bytes stay
        for tensor in model.graph.initializer:
            if tensor.name in indices:
                tensor.raw_data = numpy_helper.to_array(tensor).astype(np.int64).tobytes()
    if FAULT == "opt-clip":  # a value beyond 32 bits is clipped, and the result another one
        for tensor in model.graph.initializer:
            if tensor.name in indices:
                tensor.CopyFrom(
                    numpy_helper.from_array(
                        np.zeros_like(numpy_helper.to_array(tensor)), tensor.name
                    )
                )
    if not changed or FAULT == "opt-nothing":  # 4.2: also when anything inside has failed
        print("Result: Unable to optimize, no knowledges matched.")
        return
    model.producer_name = "AutoOptimizer"
    onnx.save(model, target)
    print(f"Result: Success\nApplied knowledges:\n  KnowledgeTypeCast\nPath: {source} -> {target}")


main(*sys.argv[1:])
