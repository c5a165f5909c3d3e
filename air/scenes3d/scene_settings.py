"""The settings of `air.SceneAIR`."""

from typing import Annotated, Literal

from tyro.conf import Suppress

from air.models.distributions import GeometricFactor
from air.models.guides import GuideName
from air.models.networks import NonLinearity
from air.models.settings import Fraction, HiddenSize, LayerSizes, PositiveInt, Scale, SomeLayerSizes, settings, short


@settings
class SceneSettings:
    """The model of 3D scenes; `air.SceneAIR` documents what each keyword does."""

    name: Suppress[Literal["scene"]] = "scene"
    guide: Annotated[GuideName | None, short("--guide")] = None
    """What proposes the next object (None: search for several objects, recurrent for one)."""
    num_steps: PositiveInt | None = None
    """The most objects a scene can hold (None: as many as there are)."""
    rnn_hidden_size: HiddenSize = 256
    """Hidden size of the LSTM and of the baseline's."""
    features: PositiveInt = 256
    """Size of the code of an image or a glimpse."""
    predict_net: LayerSizes = (200,)
    """Hidden layers of the network that predicts a step's latents."""
    bl_embed_net: SomeLayerSizes = (200,)
    """Layers between the image and the baseline's LSTM."""
    bl_predict_net: LayerSizes = ()
    """Hidden layers of nvil's baseline."""
    non_linearity: NonLinearity = "ReLU"
    """Name of a class in torch.nn."""
    use_masking: bool = True
    """Leave out the KLs of absent objects."""
    use_baselines: bool = True
    """nvil learns an input-dependent baseline."""
    likelihood_sd: Scale = 0.1
    """Standard deviation of a pixel, in intensities."""
    count_prior: GeometricFactor = 1e-8
    """k of the count prior p(n) ∝ k^n."""
    identity: Literal["local", "nvil", "enumerate"] | None = None
    """Gradient estimator of the shapes (None: enumerate for one object, local for several)."""
    first_sharpness: Scale = 5.0
    """Sharpness of the renderer at the start of training."""
    annealed: Fraction = 0.5
    """Share of the training by the end of which the renderer is sharp and shapes are no longer explored."""
    object_size: Suppress[Scale | None] = None
