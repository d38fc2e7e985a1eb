"""What is plainly wrong with a caption is found, what is right is left alone, and no text is too long or too odd."""

import pytest

from serve_app.dialects.captions.quality import FINDINGS, Finding, Sight, findings
from serve_app.families.languages import LANGUAGES, language_called

PROMPT = "Write a long descriptive caption for this image in a formal tone."
GOOD = (
    "A golden retriever walks along a wet asphalt road in the rain. Its light coat is damp, and a red collar with a "
    "leash hangs from its neck. Behind it the trees of a park are out of focus, and a lamp post stands at the left. "
    "Above the dog, bold black letters on a white band read “Self-supervised Learning”."
)
TAGS = (
    "1girl, solo, long hair, blue eyes, school uniform, blue skirt, white shirt, red ribbon, standing, outdoors, "
    "cherry blossoms, petals, looking at viewer, smile, blue sky, cloud, day, tree, from below, wind"
)
SAMPLES = {
    "en": GOOD,
    "de": "Ein Hund läuft mit einer Leine auf der nassen Straße, und die Bäume im Hintergrund sind nicht scharf.",
    "fr": "Un chien court sur la route mouillée avec une laisse, et les arbres dans le parc sont flous.",
    "es": "Un perro corre por la carretera mojada con una correa, y los árboles del fondo no se ven con claridad.",
    "it": "Un cane corre sulla strada bagnata con il guinzaglio, e gli alberi nello sfondo non sono nitidi.",
    "pt": "Um cão corre na estrada molhada com uma trela, e as árvores do fundo não estão nítidas.",
    "nl": "Een hond loopt met een riem op de natte weg, en de bomen op de achtergrond zijn niet scherp.",
    "pl": "Pies biegnie na smyczy przez mokrą drogę, a drzewa w tle nie są ostre i widać niebo nad nimi.",
    "ru": "Собака бежит по мокрой дороге на поводке.",
    "el": "Ένας σκύλος τρέχει στον βρεγμένο δρόμο.",
    "ar": "كلب يركض على الطريق المبلل.",
    "zh": "一只金毛犬走在潮湿的柏油路上，背景模糊。",
    "ja": "濡れた道を犬が歩いています。背景はぼやけています。",
    "ko": "개 한 마리가 젖은 길을 걷고 있다.",
    "hi": "एक कुत्ता गीली सड़क पर चल रहा है।",
    "th": "สุนัขเดินอยู่บนถนนที่เปียก",
    "he": "כלב הולך על כביש רטוב.",
}


def found(text: str, **sight: object) -> tuple[Finding, ...]:
    return findings(Sight(text, PROMPT, **sight))  # type: ignore[arg-type]  # whichever fields


@pytest.mark.parametrize(
    "text",
    [
        GOOD, "a red circle", "Two cats.", "No smoking", "7", "The photographer stands by the sea.",
        "A man reads a sign that says “I cannot help you”, which hangs above a very long counter in an old shop.",
        "A row of houses: a red house, a blue house, a green house, a white house, a grey house and a black house.",
        "A poster with the words “ha ha ha” on it.", "A long caption of a cat in a formal tone.",
        "The painting technique is loose.", "This imagery is dense.", "A sure sign of spring: snowdrops.",
        "A calculator shows 3.14159265358979323846.", "一只金毛犬走在潮湿的柏油路上，背景模糊。",
    ],
)  # fmt: skip
def test_what_is_right_is_left_alone(text: str) -> None:
    assert found(text) == ()


def test_a_list_of_tags_is_no_loop() -> None:
    assert found(TAGS, lists_tags=True) == ()
    assert (
        found(", ".join(f"{colour} dress" for colour in ("red", "blue", "white", "green") * 2), lists_tags=True) == ()
    )


@pytest.mark.parametrize("text", ["", " \n\t ", "...", "— “” …", "_____", "\u200b", "🙂"])
def test_nothing_said_is_empty(text: str) -> None:
    assert found(text) == ("empty",)


@pytest.mark.parametrize(
    "text",
    [
        "a cat " * 50, GOOD + " The dog is happy." * 8, "the the the the the the the the the the the the the",
        GOOD + " and it is wet, and it is cold" * 6 + ", and it", "ha" * 40, "猫" * 60, "A wall of bricks" + "." * 50,
        "\n".join(["The dog is on the road and it is wet."] * 10), "0101" * 30,
    ],
)  # fmt: skip
def test_loops(text: str) -> None:
    assert "loop" in found(text)


def test_a_loop_in_the_middle_and_one_of_tags() -> None:
    assert "loop" in found("A dog. " + "It is a good dog on a road. " * 20 + "Then the sun sets behind the hills.")
    assert "loop" in found("blue eyes, red hair, " * 6 + "smile", lists_tags=True)
    assert "loop" in found("hat, dog, red, " * 3, lists_tags=True)
    assert "loop" in found("1girl, solo, solo, solo, solo, hat, solo", lists_tags=True)
    assert found("1girl, solo, hat, dog, red, sea, hat", lists_tags=True) == ()


@pytest.mark.parametrize(
    "text", ["N/A", "n/a.", "None", "null", "No caption available.", "[no description]", "(none)", "—"]
)
def test_words_for_nothing_are_empty(text: str) -> None:
    assert found(text) == ("empty",)


@pytest.mark.parametrize(
    "text",
    [
        "The image of a saint is carved above the door.", "None of the windows is lit.",
        "The photograph on the wall is old.",
        "A sorry sight: a dog in the rain.", "Sorry! board game box on a table",
        "A sign that says: sorry, we are closed",
        "The painting hangs above a sofa.", "A response: two people shout.",
        "No image is visible on the screen of a phone.",
        "The picture frame is made of gold.", "A caption below the comic reads: help!",
        "Unable to fly, a penguin swims.",
        "Tags hang from a suitcase.", "Sure-footed goats climb a cliff.", "We see more of the sea on the left.",
    ],
)  # fmt: skip
def test_captions_that_only_sound_like_a_fault_pass(text: str) -> None:
    assert found(text) == ()


@pytest.mark.parametrize(
    "text",
    [
        "This image shows a dog on a road.", "The image depicts a dog.", "In this photo, a dog runs.",
        "The picture features a dog.", "the photograph captures a dog", "This black and white photo shows a dog.",
        "The image is a close-up of a camera.", "You are looking at a dog.",
        "Sure! Here is a caption for this image: A dog.", "Here's a description of the image: a dog",
        "**This image shows** a dog", "In the image a dog runs.", "This artwork depicts a dog.",
        "This screenshot shows a form.", "Caption: a dog on a road", "**Image description:** a dog on a road",
        "Tags: dog, road", "The screenshot displays a form.", "This is a photo of a dog.",
        "This digital painting portrays a dog.",
        "The image is showing a dog.", "I can see a dog.", "Certainly! A dog on a road.", "Alt text: a dog",
        "In this vintage photograph, a dog runs.",
    ],
)  # fmt: skip
def test_meta_phrases(text: str) -> None:
    assert found(text) == ("meta_phrase",)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.", "I’m sorry, I cannot describe this.", "I apologize, but no.",
        "As an AI language model, I don't see pictures.", "I am unable to view it.", "**I cannot assist with that.**",
        "Unfortunately, I'm not able to do it.", "A picture. I can't provide a description of people.",
        "Sorry, I can't assist with that request.", "Sorry, but I am unable to process this.",
        "I'm really sorry, no.",
        "We cannot help with this.", "My apologies, this is not allowed.",
        "I do not feel comfortable describing this.",
        "Unable to process the image.", "I must decline.", "No image was provided.", "I don't see an image here.",
        "I'm not comfortable with that.", "As a language model, I have no eyes.",
        "Sorry, there is no image attached.",
    ],
)  # fmt: skip
def test_refusals(text: str) -> None:
    assert found(text) == ("refusal",)


@pytest.mark.parametrize(
    "text",
    [
        PROMPT,
        f"{PROMPT} A dog.",
        f"user\n{PROMPT.upper()}\nassistant A dog.",
        "write a long descriptive caption for this!",
    ],
)
def test_echoes_of_the_prompt(text: str) -> None:
    assert "prompt_echo" in found(text)


def test_a_short_prompt_may_begin_a_caption() -> None:
    assert findings(Sight("a photo of a dog", "a photo of")) == ()


def test_an_answer_that_was_cut_off_is_truncated() -> None:
    assert found(GOOD, is_cut_off=True) == ("truncated",)


@pytest.mark.parametrize("code", SAMPLES)
def test_a_language_is_itself_and_no_other_of_the_samples(code: str) -> None:
    for other in SAMPLES:
        seen = findings(Sight(SAMPLES[code], PROMPT, language=language_called(other)), ["wrong_language"])
        same = code == other or (code, other) == ("zh", "ja")  # Japanese is written in Han as well
        assert bool(seen) != same, (code, other)


def test_no_language_is_wrong_where_none_was_asked_for_or_nothing_tells() -> None:
    assert found(SAMPLES["ru"]) == ()
    assert found("123 456", language=language_called("de")) == ()
    assert found(TAGS, lists_tags=True, language=language_called("de")) == ()
    assert found("“Волга”, a blue car of the sixties in front of a house", language=language_called("en")) == ()


def test_only_what_is_asked_for_is_looked_for_and_the_worst_comes_first() -> None:
    text = "This image shows a cat. " + "a cat " * 50
    assert found(text, is_cut_off=True) == ("loop", "truncated", "meta_phrase")
    assert findings(Sight(text, PROMPT, True), ["meta_phrase"]) == ("meta_phrase",)
    assert findings(Sight("", PROMPT), ["loop"]) == ()


HOSTILE = [
    "a", "ab ", "a cat ", "the image ", "In this image ", "sure ", "here is a ", "I'm sorry ", ", ", "猫", "\n", "<",
    "\0", "Write a long descriptive caption ", "this very very ", "'", "é", "🙂", "\u202e", "1girl, ", "the a ",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_hundred_thousand_characters_are_seen_at_once(piece: str) -> None:
    """A quadratic look would take minutes, and the tests' time limit would end it."""
    text = piece * (100_000 // len(piece))
    for sight in (
        Sight(text, PROMPT),
        Sight(text, text, True, True),
        Sight(GOOD + text, text, language=LANGUAGES[0]),
    ):
        assert set(findings(sight)) <= set(FINDINGS)


def test_a_text_without_repetition_of_that_length_passes() -> None:
    assert "loop" not in found(" ".join(str(number) for number in range(20_000)))
