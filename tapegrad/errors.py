"""Every message about autograd a user can see, in one place."""

BACKWARD_TWICE = (
    "Trying to backward through the graph a second time (or directly access saved tensors after they have already been freed). "
    "Saved intermediate values of the graph are freed when you call .backward() or autograd.grad(). Specify retain_graph=True "
    "if you need to backward through the graph a second time or if you need to access saved tensors after calling backward."
)
NOT_SCALAR = "grad can be implicitly created only for scalar outputs"
NO_GRAPH = "element {} of tensors does not require grad and does not have a grad_fn"
LEAF_IN_PLACE = "a leaf Variable that requires grad is being used in an in-place operation."
LEAF_VIEW_IN_PLACE = "a view of a leaf Variable that requires grad is being used in an in-place operation."
MULTIPLE_VIEWS_IN_PLACE = (
    "Output 0 of {name} is a view and is being modified inplace. This view is the output of a function that returns multiple "
    "views. Such functions do not allow the output views to be modified inplace. You should replace the inplace operation by an "
    "out-of-place one."
)
MODIFIED = (
    "one of the variables needed for gradient computation has been modified by an inplace operation: "
    "[tapegrad.{type}Tensor {shape}], which is output 0 of {name}, is at version {version}; expected version {expected} instead. "
    "Hint: enable anomaly detection to find the operation that failed to compute its gradient, with "
    "tapegrad.autograd.set_detect_anomaly(True)."
)
MODIFIED_LEAF = (
    "one of the variables needed for gradient computation has been modified by an inplace operation: "
    "[tapegrad.{type}Tensor {shape}] is at version {version}; expected version {expected} instead. "
    "Hint: enable anomaly detection to find the operation that failed to compute its gradient, with "
    "tapegrad.autograd.set_detect_anomaly(True)."
)
TOO_MANY_OPS = (
    "{name} would be operation number {number}, and a process holds at most {most}. An operation declared anew with another constant "
    "in it is another operation: make what varies an input."
)
NOT_FLOATING = "Only Tensors of floating point and complex dtype can require gradients"
NOT_FLOATING_SET = "only Tensors of floating point and complex dtype can require gradients"
NOT_A_LEAF = (
    "you can only change requires_grad flags of leaf variables. If you want to use a computed variable in a subgraph that "
    "doesn't require differentiation use var_no_grad = var.detach()."
)
GRAD_OF_NON_LEAF = (
    "The .grad attribute of a Tensor that is not a leaf Tensor is being accessed. Its .grad attribute won't be populated during "
    "autograd.backward(). If you indeed want the .grad field to be populated for a non-leaf Tensor, use .retain_grad() on the "
    "non-leaf Tensor. If you access the non-leaf Tensor by mistake, make sure you access the leaf Tensor instead."
)
NUMPY_GRAD = "Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead."
GRADIENT_SHAPE = "Mismatch in shape: grad_output[{k}] has a shape of {given} and output[{k}] has a shape of {expected}."
UNUSED_INPUT = (
    "One of the differentiated Tensors appears to not have been used in the graph. Set allow_unused=True if this is the "
    "desired behavior."
)
INPUT_NO_GRAD = "One of the differentiated Tensors does not require grad"
GRADIENT_TYPE = "gradients can be either Tensors or None, but got {}"
INFERENCE_SAVED = (
    "Inference tensors cannot be saved for backward. Please do not use Tensors created in inference mode in computation tracked "
    "by autograd. To work around this, you can make a clone to get a normal tensor and use it in autograd, or use "
    "`tapegrad.no_grad()` instead of `tapegrad.inference_mode()`."
)
INFERENCE_WRITTEN = (
    "Inplace update to inference tensor outside InferenceMode is not allowed. You can make a clone to get a normal tensor before "
    "doing inplace update."
)
NO_GRAD_VIEW_WRITTEN = (
    "A view was created in no_grad mode and is being modified inplace with grad mode enabled. Given that this use case is "
    "ambiguous and error-prone, it is forbidden. You can clarify your code by moving both the view and the inplace either both "
    "inside the no_grad block (if you don't want the inplace to be tracked) or both outside (if you want the inplace to be tracked)."
)
SELF_OVERLAP = (
    "unsupported operation: more than one element of the written-to tensor refers to a single memory location. Please clone() "
    "the tensor before performing the operation."
)
PARTIAL_OVERLAP = (
    "unsupported operation: some elements of the input tensor and the written-to tensor refer to a single memory location. "
    "Please clone() the tensor before performing the operation."
)
