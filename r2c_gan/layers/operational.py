"""Operational layers: convolutions whose neurons are learned polynomials, and the padding they are used with.

A convolutional neuron is linear in its input. An operational neuron replaces it by a learned nonlinearity, written as
its Maclaurin series around 0 and cut after q terms (Kiranyaz et al., "Self-organized operational neural networks with
generative neurons", Neural Networks 140, 2021):

    y = b + sum over p = 1..q of W_p * x^p

where * is convolution and x^p the elementwise power; the series' constant term is the bias b. The series is taken
around 0, so inputs should lie in [-1, 1] (feed it images so scaled, or the output of a tanh). q = 1 is a convolution.
"""

import contextlib
import math

import keras
from keras import ops

from r2c_gan.options.network import POWER_INITS

FORMS = ("auto", "concatenated", "summed")
# With few input channels one convolution over all powers wins, with many the sum of q
# (experiments/benchmarks/layers.py).
CONCATENATED_CHANNELS = 16
PADDINGS = ("valid", "same", "reflect")


@keras.saving.register_keras_serializable("r2c_gan")
class GlorotPerPower(keras.initializers.Initializer):
    """Draws each power's kernel by its own initializer and stacks them along the input channels.

    A fan computed over the stacked kernel would count q times the channels; the authors initialise every W_p as a
    convolution of its own, with Glorot's uniform rule.

    Args:
        q: number of powers.
        axis: axis of the kernel that holds q times the input channels.
        initializer: initializer of one power; Glorot uniform by default.
        seed: integer seed, when `initializer` is not given.
        power_init: "equal" for the authors' rule; "maclaurin" divides what is drawn for x^p by p!, as in the Maclaurin
            series of a function with bounded derivatives.

    Raises:
        ValueError: if `power_init` is unknown.
    """

    def __init__(self, q, axis=-2, initializer=None, seed=None, power_init="equal"):
        self.q = q
        self.axis = axis
        self.power_init = _choice("power_init", power_init, POWER_INITS)
        self.initializer = keras.initializers.get(initializer or keras.initializers.GlorotUniform(seed))

    def __call__(self, shape, dtype=None):
        shape = list(shape)
        shape[self.axis] //= self.q
        # An initializer object repeats its draw: each power needs a clone, that is, a seed, of its own.
        clones = [self.initializer]
        for power in range(1, self.q):
            # A plain function is an initializer too, and has nothing to clone.
            clone = self.initializer.clone() if hasattr(self.initializer, "clone") else self.initializer
            if isinstance(getattr(clone, "seed", None), int):
                clone.seed = clone.seed + power
            clones.append(clone)
        kernels = [clone(tuple(shape), dtype=dtype) for clone in clones]
        if self.power_init == "maclaurin":
            kernels = [kernel / math.factorial(power) for power, kernel in enumerate(kernels, start=1)]
        return ops.concatenate(kernels, axis=self.axis)

    def get_config(self):
        return {
            "q": self.q,
            "axis": self.axis,
            "initializer": keras.initializers.serialize(self.initializer),
            "power_init": self.power_init,
        }


_portable = False


@contextlib.contextmanager
def portable():
    """Within it, layers are traced in plain `keras.ops`, without TensorFlow's own kernels, as converters need it."""
    global _portable
    before, _portable = _portable, True
    try:
        yield
    finally:
        _portable = before


def native_kernels():
    """The module of TensorFlow's own kernels where they are to be used, else None."""
    if _portable or keras.backend.backend() != "tensorflow":
        return None
    from r2c_gan.layers import tensorflow_kernels

    return tensorflow_kernels


def powers(x, q):
    """x, x^2, ..., x^q as a list, each by one multiplication: a `pow` is many times dearer and, below 0, undefined."""
    terms = [x]
    for _ in range(q - 1):
        terms.append(terms[-1] * x)
    return terms


@keras.saving.register_keras_serializable("r2c_gan")
class ReflectionPadding2D(keras.layers.Layer):
    """Pads height and width by mirroring, without repeating the border pixel.

    Args:
        padding: pixels added at each side: an integer, or ((top, bottom), (left, right)).

    Call arguments:
        inputs: [N, H, W, C]; H and W must exceed the padding.

    Returns:
        [N, H + top + bottom, W + left + right, C].

    Raises:
        ValueError: if the padding is not of that form.
    """

    def __init__(self, padding=1, **kwargs):
        super().__init__(**kwargs)
        sides = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
        try:
            (top, bottom), (left, right) = sides
            valid = all(isinstance(side, int) and side >= 0 for side in (top, bottom, left, right))
        except (TypeError, ValueError):
            valid = False
        if not valid:
            raise ValueError(
                f"padding must be a non-negative integer or ((top, bottom), (left, right)) of them, got {padding!r}"
            )
        self.padding = ((top, bottom), (left, right))
        self.input_spec = keras.layers.InputSpec(ndim=4)

    def call(self, inputs):
        return ops.pad(inputs, [(0, 0), *self.padding, (0, 0)], mode="reflect")

    def compute_output_shape(self, input_shape):
        sides = [
            None if size is None else size + sum(pad) for size, pad in zip(input_shape[1:3], self.padding, strict=True)
        ]
        return (input_shape[0], *sides, input_shape[3])

    def get_config(self):
        return {**super().get_config(), "padding": self.padding}


@keras.saving.register_keras_serializable("r2c_gan")
class InstanceNormalization(keras.layers.GroupNormalization):
    """Normalises each channel of each sample to mean 0 and variance 1, then scales and shifts it by learned numbers.

    What `tfa.layers.InstanceNormalization` computes (`make test-addons` checks that), with its epsilon, the authors'.
    Statistics are float32 whatever the dtype policy.

    Args:
        epsilon: added to the variance.

    Call arguments:
        inputs: [N, H, W, C].

    Returns:
        [N, H, W, C].
    """

    def __init__(self, epsilon=1e-3, **kwargs):
        super().__init__(groups=-1, epsilon=epsilon, **kwargs)

    def call(self, inputs):
        kernels = native_kernels()
        if kernels is None:
            return super().call(inputs)
        # Read by their values, because under a mixed policy Keras would cast them.
        return kernels.instance_normalization(inputs, self.gamma.value, self.beta.value, self.epsilon)

    def get_config(self):
        config = super().get_config()
        del config["groups"]
        return config


def instance_normalization(name=None):
    """Instance normalisation with the authors' epsilon."""
    return InstanceNormalization(name=name)


class _OperationalConv(keras.layers.Layer):
    """Arguments, weights and configuration that the two operational layers share.

    The q kernels live in one variable, stacked along the input channels in the order of the powers, so that both forms
    of the layer read the same weights.
    """

    _kernel_input_axis = None

    def __init__(
        self,
        filters,
        kernel_size,
        q=3,
        strides=(1, 1),
        padding="valid",
        dilation_rate=(1, 1),
        activation=None,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        form="auto",
        power_init="equal",
        **kwargs,
    ):
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        self.filters = _positive("filters", filters)
        self.kernel_size = _pair("kernel_size", kernel_size)
        self.q = _positive("q", q)
        self.strides = _pair("strides", strides)
        self.padding = _choice("padding", padding, self._paddings)
        self.dilation_rate = _pair("dilation_rate", dilation_rate)
        if max(self.strides) > 1 and max(self.dilation_rate) > 1:
            raise ValueError(f"strides={self.strides} and dilation_rate={self.dilation_rate}: one of them must be 1")
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.form = _choice("form", form, FORMS)
        self.power_init = _choice("power_init", power_init, POWER_INITS)
        self.input_spec = keras.layers.InputSpec(ndim=4)

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels is None:
            raise ValueError(f"{self.name}: the number of input channels must be known, got input shape {input_shape}")
        self.kernel = self.add_weight(
            name="kernel",
            shape=self._kernel_shape(self.q * channels),
            initializer=GlorotPerPower(
                self.q, self._kernel_input_axis, self.kernel_initializer, power_init=self.power_init
            ),
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self.filters,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
            self.bias.learning_rate_multiplier = self.q  # see optimizers.step_biases_as_sums
        self.input_spec = keras.layers.InputSpec(ndim=4, axes={-1: channels})
        self._form = self.form
        if self.form == "auto":
            self._form = "concatenated" if self.q > 1 and channels <= CONCATENATED_CHANNELS else "summed"

    def call(self, inputs):
        sides = self._reflected_sides()
        if self._form == "summed":
            kernels = ops.split(self.kernel, self.q, axis=self._kernel_input_axis)
            if faster := native_kernels():
                outputs = faster.sum_over_powers(inputs, kernels, sides, self._convolve)
            else:
                terms = powers(_reflect(inputs, sides), self.q)
                outputs = sum(self._convolve(term, kernel) for term, kernel in zip(terms, kernels, strict=True))
        else:
            outputs = self._convolve(ops.concatenate(powers(_reflect(inputs, sides), self.q), axis=-1), self.kernel)
        if self.bias is not None:
            outputs = outputs + ops.cast(self.bias, outputs.dtype)
        return self.activation(outputs)

    def _reflected_sides(self):
        """Pixels of mirrored padding, ((top, bottom), (left, right))."""
        return ((0, 0), (0, 0))

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "q": self.q,
            "strides": self.strides,
            "padding": self.padding,
            "dilation_rate": self.dilation_rate,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "activity_regularizer": keras.regularizers.serialize(self.activity_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
            "form": self.form,
            "power_init": self.power_init,
        }


@keras.saving.register_keras_serializable("r2c_gan")
class OperationalConv2D(_OperationalConv):
    """Operational convolution: y = b + sum over p = 1..q of W_p * x^p, with one bias.

    Args:
        filters: number of output channels.
        kernel_size: height and width of the kernels, an integer or a pair.
        q: order of the polynomial, at least 1; 1 is `keras.layers.Conv2D`.
        strides: an integer or a pair.
        padding: "valid", "same" (zeros) or "reflect" (mirrored, as many pixels as keep the size at stride 1).
        dilation_rate: an integer or a pair; only with a stride of 1.
        activation, use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer,
        activity_regularizer, kernel_constraint, bias_constraint: as in `keras.layers.Conv2D`. The initializer draws the
            kernel of each power on its own.
        form: "concatenated" convolves the powers, concatenated along the channels, once; "summed" adds q convolutions;
            "auto" takes the faster. The weights and the result are the same.
        power_init: how the powers are initialised beside each other, as in `GlorotPerPower`.

    Call arguments:
        inputs: [N, H, W, C], values in [-1, 1].

    Returns:
        [N, H', W', filters], with H' and W' as in `keras.layers.Conv2D`.

    Attributes:
        kernel: [kernel height, kernel width, q * C, filters], the powers one after another along the third axis.

    Raises:
        ValueError: if an argument is out of its range, or the number of input channels is unknown.
    """

    _paddings = PADDINGS
    _kernel_input_axis = -2

    def _kernel_shape(self, channels):
        return (*self.kernel_size, channels, self.filters)

    def _reflected_sides(self):
        if self.padding != "reflect":
            return super()._reflected_sides()
        return tuple(map(_reflect_sides, self.kernel_size, self.dilation_rate))

    def _convolve(self, inputs, kernel):
        padding = "valid" if self.padding == "reflect" else self.padding
        return ops.conv(inputs, kernel, self.strides, padding, "channels_last", self.dilation_rate)

    def compute_output_shape(self, input_shape):
        sides = []
        for size, kernel, stride, rate in zip(
            input_shape[1:3], self.kernel_size, self.strides, self.dilation_rate, strict=True
        ):
            if size is not None:
                size = size - (rate * (kernel - 1) if self.padding == "valid" else 0)
                size = -(-size // stride)
            sides.append(size)
        return (input_shape[0], *sides, self.filters)


@keras.saving.register_keras_serializable("r2c_gan")
class OperationalConv2DTranspose(_OperationalConv):
    """Transposed operational convolution: the transposed convolutions of the powers of x, summed, with one bias.

    Arguments as in `OperationalConv2D`, with padding "valid" or "same".

    Call arguments:
        inputs: [N, H, W, C], values in [-1, 1].

    Returns:
        [N, H', W', filters], with H' and W' as in `keras.layers.Conv2DTranspose`: H times the stride for "same".

    Attributes:
        kernel: [kernel height, kernel width, filters, q * C], the powers one after another along the last axis.

    Raises:
        ValueError: if an argument is out of its range, or the number of input channels is unknown.
    """

    _paddings = ("valid", "same")
    _kernel_input_axis = -1

    def _kernel_shape(self, channels):
        return (*self.kernel_size, self.filters, channels)

    def _convolve(self, inputs, kernel):
        return ops.conv_transpose(inputs, kernel, self.strides, self.padding, None, "channels_last", self.dilation_rate)

    def compute_output_shape(self, input_shape):
        sides = []
        for size, kernel, stride, rate in zip(
            input_shape[1:3], self.kernel_size, self.strides, self.dilation_rate, strict=True
        ):
            if size is not None:
                size = size * stride
                if self.padding == "valid":
                    size += max(rate * (kernel - 1) + 1 - stride, 0)
            sides.append(size)
        return (input_shape[0], *sides, self.filters)


def _reflect(x, sides):
    return ops.pad(x, [(0, 0), *sides, (0, 0)], mode="reflect") if any(map(any, sides)) else x


def _reflect_sides(kernel, rate):
    total = rate * (kernel - 1)
    return total // 2, total - total // 2


def _positive(name, value):
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    return value


def _pair(name, value):
    pair = (value, value) if isinstance(value, int) else value
    pair = tuple(pair) if isinstance(pair, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(size, int) and size > 0 for size in pair):
        raise ValueError(f"{name} must be a positive integer or a pair of them, got {value!r}")
    return pair


def _choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value
