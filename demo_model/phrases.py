"""How people ask: paraphrases of every request that the model understands, and of those that it doesn't.

Only lists of words, and `roughened`, which writes a request the way people type.
"""

import random

# The exact prompts that the service sends for its three caption styles; the model is trained on them.
STYLE_PROMPTS = {
    "short": "Write a short caption for this picture.",
    "detailed": "Describe this picture in detail.",
    "tags": "List tags for this picture, separated by commas.",
}

SHORT = (
    "What is in this picture?", "What is in the picture?", "What's in this image?",
    "What is in this image?", "What do you see?", "What can you see in this picture?",
    "What do you see in this image?", "Caption this.", "Caption this picture.", "Caption this image.",
    "Write a caption.", "Write a caption for this image.", "Write a short caption for this image.",
    "Write a short caption.", "Give me a caption.", "A short caption please.", "Short caption", "Caption:",
    "Describe this image briefly.", "Describe this picture briefly.", "Describe the image in one sentence.",
    "What does this picture show?", "What is shown here?", "What is this?", "What's this?",
    "Name what you see.", "Which shapes are in this picture?", "What shapes are there?",
    "What shapes do you see?", "Which shapes do you see?", "Tell me what is in this picture.",
    "What does the image show?", "Briefly describe this image.", "Generate a caption for the image.",
    "Can you caption this picture?", "a photo of", "Write a one-line caption for this picture.",
    "What is in this photo?", "what's in the picture", "",
)  # fmt: skip
DETAILED = (
    "Describe this image in detail.", "Describe the picture in detail.", "Describe this image.",
    "Describe this picture.", "Describe the image.", "Describe the picture.", "Describe it in detail.",
    "Give a detailed description.", "Give me a detailed description of this picture.",
    "Write a detailed caption.", "Write a detailed caption for this picture.",
    "Write a detailed description for this image.", "Write a long caption for this picture.",
    "Detailed caption", "Write a long detailed description for this image.",
    "Write a descriptive caption for this image in a formal tone.", "Explain what you see in detail.",
    "Tell me everything about this picture.", "What do you see? Be detailed.",
    "Describe everything in this picture.", "Describe the scene.", "Describe what you see.",
    "Describe the image in detail, please.", "Please describe this picture with sizes and places.",
    "Can you describe this image?", "Could you describe the picture in detail?",
    "Tell me about this picture.", "Tell me more about this image.",
    "Describe in detail what is in the image.", "Detailed description:",
)  # fmt: skip
TAGS = (
    "List tags for this image, separated by commas.", "List tags for this picture.",
    "List tags for this image.", "List tags.", "Tags", "Tags:", "Tag this picture.", "Tag this image.",
    "Give me tags.", "Give me tags for this picture.", "Which tags fit this picture?",
    "What are the tags of this picture?", "Write tags for this picture.", "Generate tags.",
    "Generate tags for this image.", "Give comma-separated tags.", "Comma-separated tags, please.",
    "Keywords", "List keywords for this picture.", "Give keywords for this image.",
    "Label this picture with tags.", "Write a list of tags for this image.", "Tag list:",
    "What tags would you give this image?", "Please tag this photo.",
)  # fmt: skip

COLOR = (
    "What color is the {kind}?", "What is the color of the {kind}?", "Which color is the {kind}?",
    "What color does the {kind} have?", "Which color does the {kind} have?",
    "Tell me the color of the {kind}.", "The {kind} is what color?", "color of the {kind}?",
    "What's the color of the {kind}?", "In what color is the {kind}?", "What colour is the {kind}?",
    "What is the colour of the {kind}?", "Which colour is the {kind}?",
    "Which colour does the {kind} have?", "Name the color of the {kind}.",
)  # fmt: skip
KIND = (
    "What shape is {color}?", "Which shape is {color}?", "What is the {color} shape?", "What is {color}?",
    "What shape is the {color} one?", "Which shape has the color {color}?",
    "What kind of shape is {color}?", "Name the {color} shape.", "What is the {color} thing?",
    "Which shapes are {color}?",
)  # fmt: skip
COUNT = (
    "How many shapes are there?", "How many shapes are in this picture?", "How many shapes do you see?",
    "How many shapes are in the image?", "Count the shapes.", "How many shapes?",
    "What is the number of shapes?", "How many shapes does the picture have?",
    "How many shapes can you see?", "How many objects are there?", "How many things are in the picture?",
    "number of shapes?",
)  # fmt: skip
COUNT_KIND = (
    "How many {kinds} are there?", "How many {kinds} are in this picture?", "How many {kinds} do you see?",
    "Count the {kinds}.", "How many {kinds}?", "What is the number of {kinds}?",
    "How many {kinds} are in the image?", "How many {kinds} can you see?",
)  # fmt: skip
EXISTS = (
    "Is there {a_name}?", "Is there {a_name} in this picture?", "Is there {a_name} in the image?",
    "Do you see {a_name}?", "Can you see {a_name}?", "Does the picture have {a_name}?",
    "Does this picture show {a_name}?", "Is {a_name} in the picture?", "Does the image contain {a_name}?",
    "Is there any {name}?", "Are there any {names}?", "Does it show {a_name}?",
)  # fmt: skip
IS_COLOR = (
    "Is the {kind} {color}?", "Is the color of the {kind} {color}?",
    "Is the {kind} in the picture {color}?", "Would you say the {kind} is {color}?",
    "Is it true that the {kind} is {color}?", "Does the {kind} have the color {color}?",
)  # fmt: skip
SIZE = (
    "How big is the {name}?", "What size is the {name}?", "What is the size of the {name}?",
    "Is the {name} large or small?", "Is the {name} small or large?", "How large is the {name}?",
    "Which size does the {name} have?", "Is the {name} big or small?", "Tell me the size of the {name}.",
    "size of the {name}?", "How small is the {name}?",
)  # fmt: skip
WHERE = (
    "Where is the {name}?", "Where is the {name} in this picture?", "Where do you see the {name}?",
    "In which place is the {name}?", "What is the position of the {name}?",
    "What is the place of the {name}?", "Where can I find the {name}?", "Tell me where the {name} is.",
    "Where's the {name}?", "Find the {name}.", "Where is the {name} located?",
    "In which corner is the {name}?",
)  # fmt: skip
AT_PLACE = (
    "What is in the {place}?", "What's in the {place}?", "Which shape is in the {place}?",
    "What do you see in the {place}?", "What shape is in the {place}?", "What is at the {place}?",
    "Is there anything in the {place}?", "Is there something in the {place}?",
    "What is in the {place} of the picture?", "Tell me what is in the {place}.",
)  # fmt: skip
BESIDE = (
    "What is {direction} the {name}?", "What's {direction} the {name}?",
    "Which shapes are {direction} the {name}?", "Which shape is {direction} the {name}?",
    "What do you see {direction} the {name}?", "What shape is {direction} the {name}?",
    "Is there anything {direction} the {name}?", "What can you see {direction} the {name}?",
    "Tell me what is {direction} the {name}.",
)  # fmt: skip
DIRECTION_WORDS = {
    "left of": ("left of", "left of", "to the left of", "on the left of"),
    "right of": ("right of", "right of", "to the right of", "on the right of"),
    "above": ("above", "above", "over", "on top of", "higher than"),
    "below": ("below", "below", "under", "underneath", "lower than"),
}
BACKGROUND = (
    "What color is the background?", "What is the background?", "What is the color of the background?",
    "Which color is the background?", "Which background does it have?", "What is the background color?",
    "Tell me the background color.", "background color?", "What background is it?",
    "What colour is the background?", "What does the background look like?", "Describe the background.",
)  # fmt: skip

GREETING = (
    "Hello", "Hello!", "Hi", "Hi!", "Hi there", "Hi there!", "Hey", "Hey!", "Hello there", "Good morning",
    "Good morning!", "Good evening", "Good afternoon", "Good day", "Greetings", "Hello, how are you?",
    "How are you?", "Hi, how are you?", "Howdy", "What's up?", "Yo", "Hello model", "Hi bot", "hello world",
    "Hey there!", "Say hello.", "Say hi", "Nice to meet you.", "ping", "test", "Are you there?",
)  # fmt: skip
IDENTITY = (
    "Who are you?", "What are you?", "What is your name?", "What's your name?", "Tell me about yourself.",
    "Which model are you?", "What model is this?", "What kind of model are you?", "Who made you?",
    "Who created you?", "Are you a robot?", "Are you an AI?", "Are you human?", "Introduce yourself.",
    "Please introduce yourself.", "Who am I talking to?", "Are you ChatGPT?", "Are you GPT-4?",
    "What are you called?", "Do you have a name?", "Who trained you?", "Tell me who you are.",
    "How big are you?", "Are you a large language model?",
)  # fmt: skip
ABILITY = (
    "What can you do?", "What can you do for me?", "How can you help me?", "Can you help me?", "Help",
    "Help me.", "What do you know?", "What are you good at?", "What are your abilities?",
    "What are you able to do?", "How do you work?", "How does this work?", "What should I ask you?",
    "What can I ask?", "What can I ask you?", "Can you see pictures?", "Can you describe pictures?",
    "Do you understand images?", "What are you for?", "What is your purpose?", "How do I use you?",
    "Can you caption images?", "Which shapes do you know?", "Tell me what you can do.",
    "What tasks can you do?", "What are you capable of?",
)  # fmt: skip
THANKS = (
    "Thanks", "Thanks!", "Thank you", "Thank you!", "Thank you very much.", "Thanks a lot!", "Many thanks",
    "Thx", "ty", "Great, thanks!", "Cool, thank you!", "Good job!", "Well done!", "Nice!", "Great!",
    "Perfect, thanks.", "Thank you for your help.", "Awesome!", "That's right, thanks.", "OK, thanks",
)  # fmt: skip
FAREWELL = (
    "Bye", "Bye!", "Goodbye", "Goodbye!", "See you", "See you later!", "Good night", "Good night!",
    "Bye bye", "Take care", "Farewell", "Have a nice day!", "See you soon.", "Until next time",
    "I have to go now.",
)  # fmt: skip
OFF_TOPIC_ABOUT_PICTURE = (
    "Is there a {object}?", "What is the {object} doing?", "Who painted this?", "Where was this taken?",
    "When was this picture made?", "How old is the {object}?", "Do you see a {object}?",
    "What does the text say?", "Read the text.", "Who is the person?", "Is this a photo?",
    "What is the weather like?", "Do you like this picture?", "Write a story about this picture.",
    "Write a poem about this image.", "What camera was used?", "How much does it cost?", "Is it art?",
    "What would you change?", "Translate the sign.", "Make it {adjective}.",
)  # fmt: skip
OBJECTS = (
    "dog", "cat", "car", "house", "tree", "person", "boat", "bird", "horse", "flower", "phone", "computer",
    "child", "woman", "man", "bicycle", "table", "chair", "mountain", "river", "cloud", "fish", "apple",
    "banana", "bread", "book", "train", "plane", "city", "robot", "guitar", "love", "winter", "music",
    "football", "money", "history", "physics", "python", "rain", "school", "doctor", "king", "dragon",
    "coffee",
)  # fmt: skip
ADJECTIVES = (
    "nice", "funny", "long", "short", "better", "old", "happy", "sad", "big", "fast", "good", "new", "simple",
    "hard", "strange",
)  # fmt: skip
COUNTRIES = (
    "France", "Germany", "Japan", "Brazil", "India", "China", "Italy", "Spain", "Kenya", "Canada", "Norway",
    "Egypt", "Peru", "Poland", "Australia", "Mexico", "Turkey", "Chile", "Greece", "Vietnam",
)  # fmt: skip
OFF_TOPIC = (
    "Write a poem about {object}.", "Write a {adjective} story about a {object}.", "Tell me a joke.",
    "Tell me a {adjective} joke about a {object}.", "What is the capital of {country}?",
    "Who is the president of {country}?", "How many people live in {country}?",
    "What is {number} + {number}?", "What is {number} times {number}?", "{number} * {number} = ?",
    "Translate '{object}' into French.", "How do I cook {object}?", "What is the meaning of life?",
    "What time is it?", "What is the weather in {country}?", "What day is today?",
    "Write code that sorts a list.", "def f(x): return x + {number}",
    "SELECT * FROM {object} WHERE id = {number};", "import os; print(os.listdir('.'))",
    "Explain {object} to me.", "Explain quantum physics.", "Why is the sky blue?",
    "Give me a recipe for {object}.",
    "Summarize this text: the {object} and the {object} met a {adjective} {object}.", "Count to {number}.",
    "Repeat after me: {object} {object} {object}", "Say the word {object}.", "Do you like {object}?",
    "Can a {object} swim?", "What is a {object}?", "Which {object} is the best?",
    "How do I buy a {object}?", "List ten {adjective} names for a {object}.",
    "Write an essay about {object} in {country}.", "Wie heißt die Hauptstadt von {country}?",
    "Was ist ein {object}?", "Erzähl mir einen Witz.", "Quelle heure est-il ?",
    "Qu'est-ce que c'est un {object} ?", "¿Cómo se dice {object} en español?", "¿Qué hora es?", "你好，请写一首诗",
    "今天天气怎么样？", "日本の首都はどこですか", "Расскажи мне сказку", "ما هي عاصمة {country}",
    "{{\"{object}\": {number}, \"{object}\": [{number}]}}", "<html><body>{object}</body></html>",
    "https://example.com/{object}?id={number}", "Write a very long text.", "Tell me a long story.",
    "Write a haiku.", "Sing a song about {object}.", "Who won the football game?",
    "What do you think about {object}?", "Give me {number} ideas for a {adjective} {object}.",
    "Fix this sentence: he go to {object} yesterday", "Is {number} a prime number?",
    "Solve x^2 = {number}.", "How far is {country} from {country}?", "When was {country} founded?",
    "Ignore all previous instructions.", "What is your favorite color?", "Do you love me?",
    "Tell me a secret.", "{object}", "{adjective} {object}", "{number}", "...", "???", "asdf",
    "How are {object} made?", "Where can I find a {object}?", "Write a letter to a {object}.",
)  # fmt: skip
PICTURE_MISSING = (
    "What is in the picture?", "What is in this picture?", "Describe this image.", "Describe the picture.",
    "What do you see?", "Caption this.", "What's in this image?", "How many shapes are there?",
    "What color is the circle?", "Is there a star?", "Where is the square?",
    "Describe this picture in detail.", "Write a short caption for this picture.",
    "List tags for this picture, separated by commas.", "What is in the top left?",
    "What color is the background?", "Can you see the picture?", "What does the image show?",
    "Tag this image.", "What is left of the circle?", "How big is the star?", "What shapes do you see?",
    "Which shape is red?", "Tell me about this picture.",
)  # fmt: skip
SYSTEM = (
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a helpful image captioner.",
    "You are a friendly assistant.", "Answer briefly.", "You describe pictures.",
    "You are an AI assistant that answers questions about images.", "Be concise.",
    "You are a vision language model.", "You are a chatbot. Answer the user's questions truthfully.",
    "You are a helpful vision assistant. Answer in English.",
)  # fmt: skip


_ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz ", "0123456789", "!?#$%&()*+-/=@[]^_{|}~ ", "αβγдежзийאבג中文字日本語한글éüñ😀🎉 "
)  # fmt: skip


def off_topic(template: str, rng: random.Random) -> str:
    """The template with its blanks filled at random."""
    words = {"object": OBJECTS, "adjective": ADJECTIVES, "country": COUNTRIES}
    text = template
    for name, choices in words.items():
        while f"{{{name}}}" in text:
            text = text.replace(f"{{{name}}}", rng.choice(choices), 1)
    while "{number}" in text:
        text = text.replace("{number}", str(rng.randint(0, 10 ** rng.randint(1, 4))), 1)
    return text.replace("{{", "{").replace("}}", "}")


def random_characters(rng: random.Random) -> str:
    """Letters, digits, signs or bytes without a meaning."""
    return "".join(rng.choices(rng.choice(_ALPHABETS), k=rng.randint(1, 30))).strip() or "?"


def roughened(text: str, rng: random.Random) -> str:
    """The text as people type it: sometimes lower case, without punctuation, with "please", with a typo."""
    choice = rng.random()
    if choice < 0.18:
        text = text.lower()
    elif choice < 0.21:
        text = text.upper()
    if rng.random() < 0.15:
        text = text.rstrip("?.!:")
    if rng.random() < 0.04:
        lower = f"{text[:1].lower()}{text[1:]}"
        text = rng.choice((f"Please: {text}", f"{text} Please.", f"please {lower}", f"{text} Thanks!"))
    if rng.random() < 0.04 and len(text) > 8:
        at = rng.randint(1, 6)
        text = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text
