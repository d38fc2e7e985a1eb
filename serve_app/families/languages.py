"""Languages of captions: code, English name, script, and words that show a text's language.

The words are each language's most frequent short ones that few of the others have. Languages with a script of their
own need none.
"""

from dataclasses import dataclass
from typing import Literal

Script = Literal["Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Thai", "Han", "Kana", "Hangul"]


@dataclass(frozen=True, slots=True)
class Language:
    """`code` is ISO 639-1. `words` are lower case, and rare in other languages of the script."""

    code: str
    name: str
    script: Script = "Latin"
    words: frozenset[str] = frozenset()


def _latin(code: str, name: str, words: str) -> Language:
    return Language(code, name, "Latin", frozenset(words.split()))


LANGUAGES: tuple[Language, ...] = (
    _latin("en", "English", "the and of is with are this that on at by from it its has which there their wearing"),
    _latin("de", "German", "der die das und ist mit ein eine einem einer auf im zu von den dem nicht sich sind auch"),
    _latin("fr", "French", "le les des est une dans et sur avec au qui il du aux cette pour sont elle ses sous"),
    _latin("es", "Spanish", "el los las y en que por su está hay fondo muestra para como tiene unos esta muy desde"),
    _latin("it", "Italian", "il gli di che è sono nella della nel per lo sullo alla dei delle sulla sullo degli uno"),
    _latin("pt", "Portuguese", "o os uma e com em um na do da ao são à pelo pela no das dos às não"),
    _latin("nl", "Dutch", "het een van en met op zijn de is aan die er naar voor niet wordt door bij staat"),
    _latin("pl", "Polish", "na jest z i w się nie do przez oraz który która są przy nad pod obok ma po za"),
    _latin("sv", "Swedish", "och är en ett på med som av i det den har för till inte vid mot under bakom"),
    _latin("da", "Danish", "og er en et på med som af i det den har til ikke ved der hvor mod bag"),
    _latin("no", "Norwegian", "og er en et på med som av i det den har til ikke ved der hvor mot bak"),
    _latin("fi", "Finnish", "ja on joka ovat kuvassa se ei että jossa hän päällä vieressä sekä kanssa oleva"),
    _latin("cs", "Czech", "je na se v s jsou který která na pozadí vedle před nad pod za jeho"),
    _latin("ro", "Romanian", "și este cu un o în pe de care sunt din la imagine stă lângă între sub"),
    _latin("hu", "Hungarian", "az egy és van is hogy nem egyik másik előtt mellett alatt fölött háttérben"),
    _latin("tr", "Turkish", "bir ve bu ile için olan üzerinde var yanında içinde önünde arkasında resimde"),
    _latin("id", "Indonesian", "dan di yang dengan ini adalah sebuah pada dari untuk berwarna seorang atas"),
    _latin("vi", "Vietnamese", "và là của một có trong với được trên người màu bức ảnh những các đang"),
    Language("ru", "Russian", "Cyrillic"),
    Language("uk", "Ukrainian", "Cyrillic"),
    Language("bg", "Bulgarian", "Cyrillic"),
    Language("el", "Greek", "Greek"),
    Language("ar", "Arabic", "Arabic"),
    Language("fa", "Persian", "Arabic"),
    Language("he", "Hebrew", "Hebrew"),
    Language("hi", "Hindi", "Devanagari"),
    Language("th", "Thai", "Thai"),
    Language("zh", "Chinese", "Han"),
    Language("ja", "Japanese", "Kana"),
    Language("ko", "Korean", "Hangul"),
)

ENGLISH = LANGUAGES[0]


def language_called(name: str) -> Language | None:
    """The language with that code, whatever the region (`pt-BR`), or with that English name; None for any other."""
    lowered = name.strip().lower()
    code = lowered.partition("-")[0]
    matches = (language for language in LANGUAGES if code == language.code or lowered == language.name.lower())
    return next(matches, None)
