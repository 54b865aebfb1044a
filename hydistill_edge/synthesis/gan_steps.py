"""The losses of the GAN's two steps, as functions of tensors alone.

So a compiler takes each step whole, with generator, discriminator and teacher. On a GPU their
kernels are recorded once and replayed: most of them are small, those of the spectral norms above
all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hydistill_edge.models.plain_features import Answer, asking, plain_features
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.coverage import ClassStatistics, class_statistics_distance
from hydistill_edge.objectives.frequency import weighted_negative_entropy
from hydistill_edge.objectives.gan_losses import (
    adc_discriminator,
    adc_generator,
    feature_integration,
    hinge_discriminator,
    hinge_generator,
)
from hydistill_edge.synthesis.gan_images import to_pixels, to_signed
from hydistill_edge.synthesis.gan_networks import Discriminator, GanGenerator
from hydistill_edge.synthesis.gan_settings import GanSettings
from hydistill_edge.training.compiling import compiled

TERMS = ("d_adv", "d_adc", "transfer", "blend", "g_adv", "g_adc", "frequency", "statistics")
"""What both steps are made of: first the discriminator's, then the generator's."""


@dataclass(frozen=True)
class GanLosses:
    """Both steps' losses.

    Attributes:
        generator: as it trains.
        discriminator: as it trains.
        ask: the teacher's answer about pixels; gradients flow.
        settings: the weights of the terms.
        statistics: of the collected images.
    """

    generator: GanGenerator
    discriminator: Discriminator
    ask: Callable[[Tensor], Answer]
    settings: GanSettings
    statistics: ClassStatistics

    def of_discriminator(
        self,
        noise: Tensor,
        asked: Tensor,
        real: Tensor,
        real_features: Tensor,
        real_classes: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the discriminator's loss, shape (), and its terms, shape (4,).

        Args:
            noise: shape (N, 128).
            asked: classes to generate, shape (N,) int64.
            real: collected images, shape (N, C, H, W) uint8.
            real_features: the teacher's of them, shape (N, D).
            real_classes: the teacher's of them, shape (N,) int64.
        """
        settings = self.settings
        with torch.no_grad():
            generated = self.generator(noise, asked)
            features = self.ask(to_pixels(generated)).penultimate
        signed = to_signed(real).contiguous(memory_format=torch.channels_last)
        of_real, of_generated = self.discriminator(signed), self.discriminator(generated)
        transfer, blend = feature_integration(
            of_real.mapped, real_features, of_generated.mapped, features
        )
        adv = hinge_discriminator(of_real.adv, of_generated.adv)
        adc = adc_discriminator(of_real.adc, real_classes, of_generated.adc, asked)
        loss = adv + settings.adc * adc + settings.transfer * transfer + settings.blend * blend
        return loss, torch.stack([adv, adc, transfer, blend]).detach()

    def of_generator(
        self, noise: Tensor, asked: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the generator's loss, shape (), its terms (4,), and the teacher's classes (N,).

        Args:
            noise: shape (N, 128).
            asked: classes to generate, shape (N,) int64.
            weights: of the categories, shape (classes,).
        """
        settings = self.settings
        generated = self.generator(noise, asked)
        judged = self.discriminator(generated)
        answer = self.ask(to_pixels(generated))
        adv, adc = hinge_generator(judged.adv), adc_generator(judged.adc, asked)
        frequency = weighted_negative_entropy(answer.logits, weights=weights)
        loss = adv + settings.adc * adc + settings.frequency * frequency
        statistics = torch.zeros_like(adv)
        if settings.statistics:
            statistics = class_statistics_distance(answer.penultimate, asked, real=self.statistics)
            loss = loss + settings.statistics * statistics
        terms = torch.stack([adv, adc, frequency, statistics]).detach()
        return loss, terms, answer.logits.detach().argmax(dim=1)


def quick_losses(
    generator: GanGenerator,
    discriminator: Discriminator,
    teacher: Teacher,
    settings: GanSettings,
    *,
    statistics: ClassStatistics,
    device: torch.device,
) -> tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., tuple[Tensor, Tensor, Tensor]]]:
    """Return both losses of `GanLosses`, compiled where the device gains and the teacher allows it.

    Args:
        generator: as it trains.
        discriminator: as it trains.
        teacher: frozen.
        settings: the weights of the terms.
        statistics: of the collected images.
        device: where all of it is.
    """
    plain = None
    if device.type == "cuda" and settings.trunk == "own":  # the other trunk is read by hooks
        plain = plain_features(teacher)
    losses = GanLosses(generator, discriminator, plain or asking(teacher), settings, statistics)
    if plain is None:
        return losses.of_discriminator, losses.of_generator
    return (
        compiled(losses.of_discriminator, device, graphs=True),
        compiled(losses.of_generator, device, graphs=True),
    )
