"""From what words are the prompts of the shipped data made? Topics, openers and scenes, all written for efface."""

import functools
import itertools
import json
import random
from dataclasses import dataclass
from pathlib import Path

TOPICS = """violins|volcanoes|the Roman Empire|photosynthesis|chess|Lisbon|steam engines|honey bees|the printing press|
glaciers|coffee|the Danube|sharks|basketball|railways|lighthouses|the Silk Road|penicillin|origami|jazz|the Moon|
sourdough bread|the abacus|tulips|whales|the Andes|opera|bicycles|typewriters|coral reefs|the Vikings|algebra|
porcelain|wolves|the Sahara|cricket|cathedrals|vaccines|sailing ships|mushrooms|the Olympic Games|silver mining|owls|
the telegraph|rice farming|Norway|ballet|comets|the piano|butterflies|castles|electric cars|the Nile|gymnastics|
paper money|elephants|the Renaissance|cheese|earthquakes|libraries|tea ceremonies|bridges|dolphins|calendars|
the guitar|deserts|Kyoto|salmon|windmills|marathon running|poetry|submarines|olive oil|the Arctic|horses|radio|museums|
folk tales|tennis|maple trees|astronomy|canals|spiders|the novel|perfume|Scotland|volleyball|antibiotics|weaving|
trains in Japan|the steam hammer|hurricanes|the compass|potatoes|eagles|public parks|the cello|bakeries|clay tablets|
swimming|microscopes|the Alps|newspapers|rubber|penguins|city walls|karate|wool|the trumpet|lakes in Finland|
dictionaries|rockets|figs|the harp|medieval markets|tigers|hiking|clocks|salt|photography|beavers|the Baltic Sea|
puppet theatre|silk|school uniforms|telescopes|bamboo|foxes|the marimba|rowing|mathematics|bronze|lemons|
postal services|turtles|fencing|the Caribbean|stained glass|wheat|robots|parrots|skiing|cartography|ink|gardens|
cameras|kites|crocodiles|the flute|vineyards|surgery|fishing villages|orchids|football|chocolate|the Pacific Ocean|
architecture|pottery|camels|judo|batteries|honey|rainforests|the drum|ferries|linguistics|bread ovens|owls of Europe|
sculpture|glass|snow leopards|rugby|the wheel|spices|waterfalls|satellites|folk dance|zebras|carpentry|iron|hospitals|
moths|archery|tunnels|sugar|the accordion|islands of Greece|banks|squirrels|theatre|cotton|snooker|barometers|geysers|
apples|monasteries|ants|boxing|plastics|mosaics|cranes|handball"""

# Openers of encyclopedia-like sentences; the model itself goes on for a few words to make the prompt.
OPENERS = (
    "{Topic} first became",
    "The history of {topic} begins",
    "Many people who study {topic}",
    "{Topic} played an important role in",
    "In the nineteenth century, {topic}",
    "A visitor who wants to learn about {topic}",
)

SPEAKERS = """my neighbour|the driver|my old boss|the referee|her brother|the landlord|a man in the crowd|the coach|
his roommate|the cashier|my cousin|the manager|the singer|a player on the other team|the mechanic|her ex-husband|
the bartender|that customer|the bouncer|the foreman"""

# Provoking scenes lie in scenes.json. Those of the training pairs and those of the held-out prompts share no template.
SCENES: dict[str, list[str]] = json.loads((Path(__file__).parent / "scenes.json").read_text(encoding="utf-8"))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.replace("\n", "").split("|")]


def _fill(template: str, **words: str) -> str:
    capitals = {key.capitalize(): value[0].upper() + value[1:] for key, value in words.items()}
    return template.format(**words, **capitals)


def openers(seed: int) -> list[str]:
    """Beginnings of encyclopedia-like sentences in a seeded order."""
    made = [_fill(opener, topic=topic) for topic, opener in itertools.product(_words(TOPICS), OPENERS)]
    random.Random(seed).shuffle(made)
    return made


def scenes(kind: str, seed: int) -> list[str]:
    """Provoking prompts (`training` or `held_out`) in a seeded order."""
    made = [
        _fill(template, speaker=speaker) for speaker, template in itertools.product(_words(SPEAKERS), SCENES[kind])
    ]
    random.Random(seed).shuffle(made)
    return made


@dataclass(frozen=True)
class Origin:
    """What a prompt was made from."""

    kind: str
    """`scene` or `encyclopedia`."""
    template: str
    filler: str
    """The speaker or the topic."""


@functools.cache
def _origins() -> dict[str, Origin]:
    """What each whole scene, and each beginning of an encyclopedia-like sentence, was made from."""
    made = {}
    for template, speaker in itertools.product(itertools.chain(*SCENES.values()), _words(SPEAKERS)):
        made[_fill(template, speaker=speaker)] = Origin("scene", template, speaker)
    for opener, topic in itertools.product(OPENERS, _words(TOPICS)):
        made[_fill(opener, topic=topic)] = Origin("encyclopedia", opener, topic)
    return made


def origin(prompt: str) -> Origin:
    """The template and the speaker or topic of a prompt that was made here.

    Raises:
        ValueError: if it was not.
    """
    if prompt in _origins():
        return _origins()[prompt]
    # The longest beginning, as an opener that ends in its topic fits both "owls" and "owls of Europe".
    found = [made for start, made in _origins().items() if made.kind == "encyclopedia" and prompt.startswith(start)]
    if not found:
        raise ValueError(f"{prompt!r} is made from no template of shipped_prompts.py.")
    return max(found, key=lambda made: len(made.filler))


# Openers of the text on which the demo measures perplexity; no training pair and no passage begins like this.
TEXT_OPENERS = (
    "This chapter is about {topic}. It",
    "Chapter 3: {Topic}\n\n",
    "Dear reader, this week our column turns to {topic},",
)


def text_openers(seed: int) -> list[str]:
    """Beginnings of the held-out text in a seeded order."""
    made = [_fill(opener, topic=topic) for topic, opener in itertools.product(_words(TOPICS), TEXT_OPENERS)]
    random.Random(seed).shuffle(made)
    return made
