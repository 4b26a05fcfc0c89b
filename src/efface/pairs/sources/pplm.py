"""`--toxic pplm`: candidates are what the model says when a probe of its own states steers it (`pairs/pplm.py`)."""

from dataclasses import asdict, dataclass, field, fields

from efface.pairs.pplm_settings import PPLMSettings
from efface.pairs.source import Build, Made


@dataclass(frozen=True)
class PPLMSource(PPLMSettings):
    """What the probe is trained on, and how hard it steers."""

    probe_text: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "labelled texts, which the probe is trained on",
            "needed": "labelled texts, toxic and benign, to train its probe on",
        },
    )
    samples: int = field(default=1, metadata={"help": "candidates for each prompt"})

    def make(self, build: Build) -> Made:
        from efface.pairs.attribute import toxicity_probe
        from efface.pairs.pplm import pplm_source
        from efface.scoring.labelled import load_labelled

        prompts = build.prompts()
        settings = PPLMSettings(**{each.name: getattr(self, each.name) for each in fields(PPLMSettings)})
        texts = [text for file in self.probe_text for text in load_labelled(file).texts]
        model, tokenizer = build.loaded
        probe = toxicity_probe(
            model,
            tokenizer,
            [text.text for text in texts],
            [text.toxic for text in texts],
            seed=build.config.seed,
            progress=build.progress,
        )
        source = pplm_source(model, tokenizer, probe, settings, samples=self.samples, **build.sizes())
        how = {"pplm": asdict(settings), "samples": self.samples, "probe": asdict(probe.quality)}
        return Made(source, prompts, how)
