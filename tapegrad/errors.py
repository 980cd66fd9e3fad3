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
    "Output {number} of {name} is a view and is being modified inplace. This view is the output of a function that returns multiple "
    "views. Such functions do not allow the output views to be modified inplace. You should replace the inplace operation by an "
    "out-of-place one."
)
MODIFIED = (
    "one of the variables needed for gradient computation has been modified by an inplace operation: "
    "[tapegrad.{type}Tensor {shape}], which is output {number} of {name}, is at version {version}; expected version {expected} instead. "
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
LEAF_MOVED = "leaf variable has been moved into the graph interior"
INPUT_NO_GRAD = "One of the differentiated Tensors does not require grad"
INPUT_TYPE = "all inputs have to be Tensors or GradientEdges, but got {}"
GRADIENT_TYPE = "gradients can be either Tensors or None, but got {}"
BATCHED_SHAPE = (
    "If `is_grads_batched=True`, we interpret the first dimension of each grad_output as the batch dimension. The sizes of the "
    "remaining dimensions are expected to match the shape of corresponding output, but a mismatch was detected: grad_output[{k}] "
    "has a shape of {given} and output[{k}] has a shape of {expected}. If you only want some tensors in `grad_output` to be "
    "considered batched, consider using vmap."
)

BACKWARD_IN_VMAP = (
    "vmap: backward() was called inside of the mapped function, where one sample stands for all, and .grad has no place for each one's "
    "gradient. Use tapegrad.func.grad, tapegrad.func.vjp or tapegrad.autograd.grad inside, or call backward() on the results of vmap."
)
OUTLIVES_VMAP = (
    "vmap: a tensor that {name} computed from its arguments is still held after it has returned, by a variable or an attribute from "
    "outside of it, or by the ctx of a Function that has its own result as an attribute instead of by save_for_backward(). It has the "
    "values of the first sample only: return it as a result, to get those of all samples."
)
VMAP_SHAPES = "vmap: {name} gives results of different shapes for different samples; results of vmap must have one shape: use masks instead"
DATA_IN_VMAP = "accessing `data` under vmap transform is not allowed"
DATA_SET_IN_VMAP = "mutating directly with `.data` under vmap transform is not allowed."
NO_VMAP = (
    "You tried to vmap over {name}, but it does not have vmap support. Please override and implement the vmap staticmethod or set "
    "generate_vmap_rule=True."
)
TWO_VMAPS = (
    "You tried to vmap over {name}, but it has both generate_vmap_rule=True and an overridden vmap staticmethod. Please set "
    "generate_vmap_rule=False or delete the overridden vmap staticmethod to avoid ambiguity."
)
VMAP_RETURNS = (
    "Expected the vmap staticmethod to have two returns, an output and out_dims with pytree structure compatible with the output. "
    "Got a {given} instead"
)

# autograd.functional
NOT_TENSORS = (
    "The {what} given to {name} must be either a Tensor or a tuple of Tensors but the {which} has type {type}."
)
V_LENGTH = "v is a tuple of invalid length: should be {expected} but got {given}."
V_SINGLE = "The given v should contain a single Tensor."
V_SIZE = "{entry}v has invalid size: should be {expected} but got {given}."
V_FOR_OUTPUT = (
    "The vector v can only be None if the user-provided function returns a single Tensor with a single element."
)
V_FOR_INPUT = (
    "The vector v can only be None if the input to the user-provided function is a single Tensor with a single element."
)
NOT_ONE_TENSOR = "The function given to {} should return a single Tensor"
NOT_ONE_ELEMENT = "The Tensor returned by the function given to {} should contain a single element"
STRICT_OUTPUT = (
    "Output {i} of the user-provided function does not require gradients. The outputs must be computed in a differentiable "
    "manner from the input when running in strict mode."
)
STRICT_INPUT = (
    "The output of the user-provided function is independent of input {i}. This is not allowed in strict mode."
)
STRICT_OUTPUT_OF_INPUT = (
    "Output {output} of the user-provided function is independent of input {i}. This is not allowed in strict mode."
)
STRICT_GRADIENT = (
    "The gradient with respect to input {i} is independent of the inputs of the user-provided function. This is not allowed in "
    "strict mode."
)
STRICT_JACOBIAN = (
    "The jacobian of the user-provided function is independent of input {i}. This is not allowed in strict mode."
)
STRICT_LINEAR = (
    "While computing the hessian, found that the jacobian of the user-provided function with respect to input {i} is independent "
    "of the input. This is not allowed in strict mode. You should ensure that your function is twice differentiable and that the "
    "jacobian depends on the inputs (this would be violated by a linear function for example)."
)
STRICT_JVP = (
    "The gradient with respect to the input is independent of entry {i} in the grad_outputs when using the double backward trick "
    "to compute forward mode gradients. This is not allowed in strict mode."
)
STRICT_HVP = (
    "The hessian of the user-provided function is independent of entry {i} in the grad_jacobian. This is not allowed in strict "
    "mode as it prevents from using the double backward trick to replace forward mode AD."
)
STRICT_JACOBIAN_GRAPH = (
    "The jacobian of the user-provided function is independent of input {i}. This is not allowed in strict mode when "
    "create_graph=True."
)
STRICT_HESSIAN_GRAPH = (
    "The hessian of the user-provided function is independent of input {i}. This is not allowed in strict mode when "
    "create_graph=True."
)
STRICT_VECTORIZED = (
    "tapegrad.autograd.functional.jacobian: `strict=True` and `vectorized=True` are not supported together. Please either set "
    "`strict=False` or `vectorize=False`."
)
STRICT_FORWARD = (
    'tapegrad.autograd.functional.jacobian: `strict=True` and `strategy="forward-mode"` are not supported together (yet). Please '
    'either set `strict=False` or `strategy="reverse-mode"`.'
)
JACOBIAN_STRATEGY = (
    'Expected strategy to be either "forward-mode" or "reverse-mode". Hint: If your function has more outputs than inputs, '
    '"forward-mode" tends to be more performant. Otherwise, prefer to use "reverse-mode".'
)
HESSIAN_STRATEGY = 'Expected strategy to be either "forward-mode" or "reverse-mode".'

# autograd.gradcheck
GRADCHECK_DTYPE = (
    "Input #{} requires gradient and is not a double precision floating point or complex. This check will likely fail if all the "
    "inputs are not of double precision floating point or complex. "
)
GRADCHECK_STRIDE_0 = (
    "The {}th input has a dimension with stride 0. gradcheck only supports inputs that are non-overlapping to be able to compute "
    "the numerical gradients correctly. You should call .contiguous on the input before passing it to gradcheck."
)
GRADCHECK_OVERLAP = (
    "The {i}th input, of shape {shape} and strides {strides}, has elements that share memory. gradcheck only supports inputs that "
    "are non-overlapping to be able to compute the numerical gradients correctly. You should call .contiguous on the input before "
    "passing it to gradcheck."
)
GRADCHECK_NO_GRAD = (
    "gradcheck expects at least one input tensor to require gradient, but none of them have requires_grad=True."
)
GRADCHECK_NO_MODE = "Expected at least one of {} or {} to be True"
GRADCHECK_OPTION = "Setting {}=True requires {} to be True"
GRADCHECK_OUTPUT = "gradcheck expects func to return a Tensor or a tuple of Tensors, but output {} has type {}."
GRADGRADCHECK_NO_OUTPUT = (
    "gradgradcheck expects at least one output of func to require gradient, but none of them does."
)
GRADCHECK_PERTURBED = (
    "Expected `func` to return outputs with the same {what} when inputs are perturbed {place}by {eps}, but got: {what}s {low} and "
    "{high}."
)
GRADCHECK_MISMATCH = "Jacobian {mode}mismatch for output {output} with respect to input {input},\nnumerical:{numerical}\nanalytical:{analytical}\n"
GRADCHECK_FAST = (
    "\nThese are the two sides of v^T J u for random u and v, which is what fast mode compares. The Jacobians themselves are\n\n"
    "Numerical:\n{numerical}\nAnalytical:\n{analytical}\n\nThe max per-element difference (slow mode) is: {difference}.\n"
)
GRADCHECK_FAST_ONLY = (
    "Fast gradcheck failed but element-wise differences are small. This means that the test might've passed in slow_mode! Call "
    "gradcheck or gradgradcheck with `fast_mode=False`."
)
GRADCHECK_NOT_REENTRANT = (
    "Backward is not reentrant, i.e., running backward with same input and grad_output multiple times gives different values. "
    "The tolerance for nondeterminism was {}. If the backward is random, or depends on the order of sums, call gradcheck or "
    "gradgradcheck with a `nondet_tol`."
)
GRADCHECK_UNDEFINED = (
    "Expected backward function to handle undefined output grads. With only some outputs differentiated, the gradients of the "
    "others are undefined and count as zeros, but got: {}"
)
GRADCHECK_TANGENT = (
    "Mismatch in tangent values for output with index: {output} when input: {input} has an undefined tangent value. Got: {got} but "
    "expected: {expected}"
)
GRADCHECK_BATCHED = (
    "gradcheck or gradgradcheck failed while testing batched gradient computation. To leave this test out, call it with "
    "`{option}=False`."
)

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
HOOK_NO_GRAD = "cannot register a hook on a tensor that doesn't require gradient"
UNPACKED_TYPE = "Output of saved tensor unpack_hook expected to be a Tensor but got result of type {}"
UNPACKED_LIKE = "Output of saved tensor unpack_hook expected to be a {} tensor of shape {}, as was packed, but got a {} tensor of shape {}"
FUNCTION_VIEW_IN_PLACE = (
    "Output {number} of {name} is a view and is being modified inplace. This view was created inside a custom Function (or because "
    "an input was returned as-is) and the autograd logic to handle view+inplace would override the custom backward associated with "
    "the custom Function, leading to incorrect gradients. This behavior is forbidden. You can fix this by cloning the output of the "
    "custom Function."
)
DIRTY_LEAF = "a leaf Variable that requires grad has been used in an in-place operation."
NOT_RETURNED = (
    "Some elements marked as dirty during the forward method were not returned as output. The inputs that are modified inplace must "
    "all be outputs of the Function."
)
DIRTY_NOT_INPUT = (
    "ctx.mark_dirty() received a tensor that was not an input. Only input Tensors that have been mutated should be passed to "
    "ctx.mark_dirty()."
)

# recorded programs: of a shape, and where in the source
COMPILE_ALIASED = (
    "compile: a value of shape {} was written to through another tensor that shares its memory (from detach(), .data or the like) and is "
    "used again{}; clone() it before it is written to"
)
COMPILE_ARGUMENT = (
    "compile: the function writes to its argument of shape {} in place{}; a recorded program would not write to the caller's tensor. Return "
    "the new value, or clone() the argument first"
)
COMPILE_BACKWARD = (
    "compile: the function leaves a gradient of shape {} in .grad of a tensor that it did not make itself{}; a recorded program would not. "
    "Use autograd.grad, or value_and_grad of the compiled function, which return gradients"
)
COMPILE_MUTATED = (
    "compile: the function writes to a tensor of shape {} that it did not make itself{}; a recorded program would not repeat that. Return "
    "the new value and assign it outside, or clone() the tensor first"
)
COMPILE_UNSEEN = (
    "compile: the function writes in place to a tensor of shape {} that requires grad while gradients are switched off{}; a recorded program "
    "would not know what its gradient is. Write to its detach().clone(), or switch gradients on"
)
COMPILE_STATE = (
    "compile: the function changes {}{}, to which it refers, at each call; a recorded program would not repeat that. Return the new value "
    "and assign it outside, or pass it as an argument"
)
COMPILE_KEPT = (
    "compile: the function keeps a tensor that depends on its arguments in {}{}; it would belong to the one call that is recorded. Return "
    "it instead"
)
COMPILE_SOURCE = (
    "compile: the function takes something from {}{}, which gives something else each time; a recorded program would repeat it. Draw random "
    "numbers with tapegrad, as by tapegrad.rand, or pass what was taken as an argument"
)
COMPILE_CHANGED = (
    "compile: {}, to which the function refers, has changed between the call and its backward, which would be that of another function. "
    "Call backward before, or pass it as an argument"
)
COMPILE_DATA = (
    "compile: the function assigns to or from .data of a tensor of shape {} that depends on its arguments{}; a recorded program would not "
    "repeat that. Use copy_(), or work with the new value"
)
COMPILE_SEEDED = (
    "compile: the function draws random numbers from a generator whose state it has set{}; a recorded program would go on with other numbers. "
    "Make and seed the generator outside of the function"
)
COMPILE_LATE = (
    "compile: a view of shape {} that was taken while gradients are switched off is used after its base was written to{}; a recorded program "
    "would not know what its gradient is. Take the view again"
)
