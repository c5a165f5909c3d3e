"""The settings of `air.AIR`."""

from typing import Annotated, Literal

from tyro.conf import Suppress

from air.models.compositing import CompositingName
from air.models.distributions import GeometricFactor
from air.models.guides import GuideName
from air.models.networks import NonLinearity
from air.models.settings import (
    Finite,
    HiddenSize,
    LayerSizes,
    NonNegative,
    ObjectSize,
    PositiveInt,
    Scale,
    Side,
    SomeLayerSizes,
    settings,
    short,
)


@settings
class AIRSettings:
    """The model of 2D scenes; `air.AIR` documents what each keyword does."""

    name: Suppress[Literal["air"]] = "air"
    guide: Annotated[GuideName | None, short("--guide")] = None
    """What proposes the next object. recurrent: an LSTM that reads the image (the paper's AIR); difference: an LSTM
    that reads the residual (DAIR); search: convolutions over the residual, for objects of any size and number (None:
    search for one's own images, crops and objects of several sizes, else recurrent)."""
    canvas_glimpse: bool = True
    """The search guide also sees what has been painted near what it finds: better, except where images hold more
    touching objects than training shows."""
    object_size: Annotated[ObjectSize | Literal["auto"] | None, short("--object-size")] = None
    """Sides of objects as shares of the image's: one share, LOW HIGH, or auto, from a tenth to half. Ranges and auto
    need the search guide (None: the size with which the data set is made; auto for one's own images)."""
    num_steps: PositiveInt | None = None
    """The most objects an image can hold (None: one more than training shows, or the recipe's where counts are
    unknown)."""
    window_size: Side = 28
    """Side of a glimpse in pixels."""
    z_what_size: PositiveInt = 50
    """Size of an object's code."""
    rnn_hidden_size: HiddenSize = 256
    """Hidden size of the LSTM and of the baseline's."""
    encoder_net: LayerSizes = (200,)
    """Hidden layers of the encoder."""
    decoder_net: LayerSizes = (200,)
    """Hidden layers of the decoder."""
    predict_net: LayerSizes = ()
    """Hidden layers between the LSTM, or the search guide's glimpses, and z_pres, z_where (none: for search, 128)."""
    embed_net: SomeLayerSizes | None = None
    """Layers between the image and the LSTM (None: it reads the pixels)."""
    bl_predict_net: LayerSizes = ()
    """Hidden layers of nvil's baseline."""
    non_linearity: NonLinearity = "ReLU"
    """Name of a class in torch.nn."""
    decoder_output_bias: Finite | None = None
    """Added to the decoder's output."""
    decoder_output_use_sigmoid: bool = False
    """Pass the decoder's output through a sigmoid."""
    compositing: Annotated[CompositingName | None, short("--compositing")] = None
    """How objects combine. add: intensities add up; over: opaque layers (None: over for data sets whose objects hide
    one another, else add)."""
    first_sd: Scale | None = None
    """With over, likelihood_sd at the first step, from which it falls in the first 40% of training (None: 0.2, or
    likelihood_sd if that is larger)."""
    convolutional: bool = False
    """Convolutional encoder and decoder in place of MLPs."""
    background: bool = False
    """Model what lies behind the objects by a small VAE; always so with over where the ground is not black."""
    z_background_size: PositiveInt = 8
    """Size of the background's code."""
    blurred_background: bool | None = None
    """The background is one colour, a gradient or a blurred picture, and then images may have any size (None: with
    over, unless it is known to have details)."""
    use_masking: bool = True
    """Leave out the KLs of absent objects."""
    use_baselines: bool = True
    """nvil learns an input-dependent baseline."""
    baseline_scalar: Finite | None = None
    """Multiplies the baseline's output."""
    count_prior: GeometricFactor | None = None
    """k of the count prior p(n) ∝ k^n (None: 1e-8; with over less, what two white pixels are worth)."""
    touch_price: NonNegative | None = None
    """Nats that an object costs if it touches an earlier one (None: 0; where sizes vary and intensities add up, what 12
    white pixels of one channel are worth)."""
    scale_prior_mean: Scale | None = None
    """Mean of the prior of s in z_where, the search guide's median (None: 1 / object_size, of a range its middle)."""
    scale_prior_sd: Scale | None = None
    """Standard deviation of the prior of s (None: in proportion to the mean, and what a range of sizes takes)."""
    pos_prior_mean: Finite = 0.0
    """Mean of the prior of x and y in z_where."""
    pos_prior_sd: Scale | None = None
    """Standard deviation of the prior of x and y, the search guide's of the centre (None: 1, or 0.6 for search)."""
    likelihood_sd: Scale | None = None
    """Standard deviation of a pixel, in intensities (None: the recipe's, less for small objects; with over 0.08, or
    the noise in the images if that is more)."""
    x_size: Suppress[Side | None] = None
    channels: Suppress[PositiveInt | None] = None
