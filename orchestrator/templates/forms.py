"""The study files that ``init`` fills: one for images with a class each, one for images with masks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from string import Template

from trainables.pretraining_config import ContrastivePretraining


@dataclass(frozen=True)
class StudyForm:
    """A study file with blanks, and what its size depends on."""

    text: Template
    #: Arms of its factors.
    num_arms: int
    #: Trials that its stages take as long as: two views, twice the epochs of a contrastive one.
    stage_trials: int
    #: Settings that make a network small enough for CPUs.
    small: str
    #: Largest batch, and training images from which on it is taken: an epoch then has ten of them.
    batch_size: int
    num_train: int

    def choose_batch(self, num_train: int) -> int:
        """Return the images of a batch: of few training images fewer, so that an epoch has some steps."""
        return self.batch_size if num_train >= self.num_train else min(self.batch_size // 2, num_train)


#: Images of an epoch of a segmentation, at least: fewer are used several times.
_MASKED_IMAGES = 160


def write_repeats(num_train: int) -> str:
    """Return the line by which few images with masks are used several times an epoch; of more of them nothing."""
    if num_train >= _MASKED_IMAGES:
        return ""
    return f"  patches_per_epoch: {_MASKED_IMAGES} # {num_train} training images, each of them several times an epoch\n"


def write_contrastive_batch(num_train: int) -> str:
    """Return the line of a contrastive batch for few training images: half of them, to a power of two; else nothing."""
    default = ContrastivePretraining.model_fields["batch_size"].default
    largest = 2 ** int(math.log2(max(num_train // 2, 2)))
    return f"      batch_size: {largest} # of {num_train} training images\n" if largest < default else ""


CLASSIFICATION = StudyForm(
    num_arms=12,  # 3 pretrainings × 2 augmentations × 2 regularisers
    stage_trials=4,
    batch_size=64,
    num_train=640,
    small="""\
  stages: 3 # of 5: enough for small images, and a tenth of the time on a CPU (docs/networks.md)
  stem: original # halves the side first: a quarter of the time
""",
    text=Template("""\
# Which training choices hold up on these images? Written by robustsweep init; change anything.
# Look first: robustsweep plan $file
# Run it:     robustsweep run $file      (again after any interruption)
#
# What was found:
$facts
study: $name
question: Do pretraining, strong augmentation and spectral decoupling make a network hold up under image shifts?

data:
$data

# What all trials share. Anything that is not written here has its default.
model:
  name: timm/tf_efficientnet_lite0 # with ImageNet weights that are installed along; or any of torchvision or timm
${small}training:
  epochs: $epochs # sized: $sizing
  batch_size: $batch_size
  learning_rate: 1e-3
$class_weights
# What varies. Every combination of levels is an arm: 3 x 2 x 2 = 12.
factors:
  pretraining:
    scratch: scratch
    imagenet:
      kind: imagenet
      on_unavailable: skip # where no weights can be had these arms are left out, and the report says so
    contrastive: # SimCLR on the training images: done once, shared by all trials that start from it
      kind: contrastive
      epochs: $contrastive_epochs # from ImageNet: a list, [imagenet, {kind: contrastive, …}] (docs/pretraining.md)
${contrastive_batch}  augmentation: [none, strong]
  regulariser: [none, spectral_decoupling]

# Independent trainings of every arm: six are the fewest with which a paired test can be significant.
replicates: $replicates

# What you expect, before anything has run. Delete it, or state your own (docs/hypotheses.md).
hypotheses:
  - name: strong-augmentation-holds-up
    claim: From scratch or ImageNet, strong augmentation raises balanced accuracy under shift by two points or more.
    treatment: {augmentation: strong}
    control: {augmentation: none}
    where: {pretraining: [scratch, imagenet]}
    direction: higher
    smallest_effect: 0.02

# Every trained model is tested on the unshifted test images and under every shift of the bank, at these severities.
evaluation:
  severities: [1, 3, 5]
  # modality: chest_xray # severity tables made for fundus, dermoscopy, chest_xray or pathology
"""),
)

SEGMENTATION = StudyForm(
    num_arms=4,  # 2 pretrainings × 2 augmentations
    stage_trials=0,
    batch_size=16,
    num_train=_MASKED_IMAGES,
    small="""\
  depth: 4 # of 5 halvings, and a narrow decoder: a quarter of the time on a CPU (docs/segmentation.md)
  width: 64
""",
    text=Template("""\
# Which training choices hold up on these images and masks? Written by robustsweep init; change anything.
# Look first: robustsweep plan $file
# Run it:     robustsweep run $file      (again after any interruption)
#
# What was found:
$facts
study: $name
question: Do ImageNet weights and strong augmentation make a segmentation hold up under image shifts?

task:
  kind: segmentation # a U-Net; decoders, losses, patches: docs/segmentation.md
${small}${repeats}data:
$data

# What all trials share. Anything that is not written here has its default.
model:
  name: timm/tf_efficientnet_lite0 # the encoder, with ImageNet weights that are installed along
training:
  epochs: $epochs # sized: $sizing
  batch_size: $batch_size
  learning_rate: 2e-3

# What varies. Every combination of levels is an arm: 2 x 2 = 4.
factors:
  pretraining:
    scratch: scratch
    imagenet:
      kind: imagenet
      on_unavailable: skip # where no weights can be had these arms are left out, and the report says so
  augmentation: [none, strong] # masks follow every geometric operation

# Independent trainings of every arm: six are the fewest with which a paired test can be significant.
replicates: $replicates

# What you expect, before anything has run. Delete it, or state your own (docs/hypotheses.md).
hypotheses:
  - name: strong-augmentation-holds-up
    claim: Strong augmentation raises Dice under shift by two points or more.
    treatment: {augmentation: strong}
    control: {augmentation: none}
    metric: robustness/mean_dice
    direction: higher
    smallest_effect: 0.02

# Every trained model is tested on the unshifted test images and under these shifts of the bank, at these severities.
evaluation:
  shifts: [gaussian_noise, defocus_blur, brightness_down, contrast_down] # docs/shifts.md has all of them
  severities: [1, 3, 5]
  # modality: chest_xray # severity tables made for fundus, dermoscopy, chest_xray or pathology
"""),
)
