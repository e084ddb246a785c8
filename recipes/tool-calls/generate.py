"""Writes prompts.jsonl, the requests that the teacher answers, by a seed: the same file every time.

    python recipes/tool-calls/generate.py

Each tool has its own ways of being asked for; slots are filled at random. A third of the requests come with a word
around them. Requests for two things join two single ones, or have a sentence of their own. The requests that no tool
serves are written out, or near misses with slots.
Nothing here knows a right answer: what the calls are, the teacher says.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

SEED = 7
SINGLE, PARALLEL, HARDER, IN_ONE, NEAR_MISSES = 900, 210, 150, 240, 110
ROOMS = ("kitchen", "living room", "bedroom", "office", "hall")
NAMES = ("Anna", "Lukas", "Sofia", "Omar", "Kim", "Nadia", "Tom", "Elena", "Raj", "Marie", "Diego", "Yuki", "my wife")
CITIES = (
    *("Berlin", "Paris", "Madrid", "Vienna", "London", "Warsaw", "Athens", "Helsinki", "Cairo", "Boston", "Tokyo"),
    *("Lyon", "Porto", "Milan", "Bergen", "Riga", "Seville", "Toronto", "Munich", "Naples", "Denver", "Krakow"),
)
GENRES = ("jazz", "classical music", "rock", "pop", "folk", "electronic music")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
FOODS = (
    *("bread", "tomatoes", "coffee", "olive oil", "rice", "toothpaste", "onions", "cheese", "batteries", "oat milk"),
    *("potatoes", "yoghurt", "carrots", "dish soap", "pasta", "oranges", "mushrooms", "flour", "paper towels", "honey"),
)
TODOS = (
    *("pay the electricity bill", "clean the gutters", "book the car service", "write to the landlord"),
    *("return the library books", "change the bed sheets", "back up the laptop", "buy a birthday present"),
    *("sort the receipts", "cancel the gym", "paint the fence", "order new glasses", "defrost the freezer"),
)
THINGS = (
    *("socks", "passport", "rain jacket", "swimsuit", "phone cable", "sleeping bag", "toothbrush", "hiking boots"),
    *("towel", "book", "sunglasses", "medicine", "camera", "jumper", "water bottle", "head torch"),
)
DISHES = ("pasta", "cake", "potatoes", "laundry", "lasagne", "tea", "cookies", "soup", "workout", "oven")
NEWS = (
    *("I will be home at seven", "the parcel has arrived", "can you pick up the kids", "lunch is on me today"),
    *("the heating works again", "please call me back", "I left the report on your desk", "happy birthday"),
    *("we are out of coffee", "the bus is late again", "see you on Sunday", "the plumber comes at three"),
    *("I have the tickets", "don't wait for me", "the dog has been fed", "your car is ready"),
)
WORDS = {5: "five", 10: "ten", 15: "fifteen", 20: "twenty", 30: "thirty", 40: "forty", 50: "fifty", 75: "seventy-five"}
AROUND = (
    *("Hey, {}", "{} Thanks.", "Please, {}", "Okay, {}", "{} Thank you!", "Quick one: {}", "Um, {}", "Listen, {}"),
    *("Sorry to bother you, {}", "{} If you can.", "Right, {}", "{} That would be great.", "Now {}", "Assistant, {}"),
)
JOINED = ("{} And {}", "{} Then {}", "{} Also, {}", "{} And one more thing: {}", "{} After that, {}", "{} Oh, and {}")
WAYS: dict[str, tuple[str, ...]] = {
    "set_light": (
        *("Switch on the {room} light.", "Turn off the light in the {room}.", "Light in the {room}, please."),
        *("Make the {room} light {percent} percent bright.", "Dim the {room} to {percent_word} percent."),
        *("It's too dark in the {room}.", "No light needed in the {room} now.", "{room}: light at {percent} %."),
        *("I forgot the light in the {room}, put it out.", "All the lights on, please.", "Kill all the lights."),
        *("Can you brighten up the {room} to {percent}%?", "I can't see a thing in the {room}, light!"),
        *("We've left the {room}, no need for light there.", "Set the lamp in the {room} to {percent}."),
        *("Every light in the home to {percent_word} percent.", "Light {room} off."),
    ),
    "set_temperature": (
        *(
            "Set the {room} to {celsius} degrees.",
            "It's cold in the {room}, make it {celsius}.",
            "{room} at {celsius}.",
        ),
        *("Heat the {room} up to {celsius} celsius.", "I want {celsius} degrees in the {room}."),
        *("Turn the heating in the {room} to {celsius}.", "Let the {room} cool down to {celsius} degrees."),
        *("The whole home should be at {celsius} degrees.", "Heating everywhere to {celsius}."),
        *(
            "Could we have {celsius} degrees in the {room}?",
            "The guests sleep in the {room}, so {celsius} degrees there.",
        ),
        *("{celsius} degrees would be nice in the {room}.", "Change the {room} thermostat to {celsius}."),
    ),
    "move_blinds": (
        *("Open the blinds in the {room}.", "Close the {room} blinds.", "{room} blinds half down, please."),
        *("The sun blinds me in the {room}, shut the blinds.", "Raise the blinds in the {room}."),
        *("Lower all the blinds.", "I want daylight in the {room}, open its blinds.", "Blinds in the {room} to half."),
        *("Put the {room} blinds halfway.", "Open all blinds, it's morning.", "Blinds down in the {room}."),
        *("Nobody should look into the {room}, so blinds closed.", "Let me see the street from the {room}, blinds up."),
    ),
    "start_timer": (
        *("Set a timer for {minutes} minutes.", "{minutes} minutes for the {dish}.", "Timer, {minutes} minutes."),
        *("Count down {minutes} minutes.", "The {dish} takes {minutes} minutes, set a timer."),
        *("Start a {minutes}-minute timer for the {dish}.", "Ring when {minutes} minutes are over."),
        *("I need to check the {dish} in {minutes} minutes.", "Timer for an hour.", "Give me {minutes} minutes."),
        *("Half an hour for the {dish}, starting now.", "Set the kitchen timer to {minutes}, it's for the {dish}."),
    ),
    "set_alarm": (
        *(
            "Wake me at {time}.",
            "Set an alarm for {time}.",
            "Alarm at {time} on weekdays.",
            "I get up at {time} tomorrow.",
        ),
        *("My alarm should ring at {time} every working day.", "Get me out of bed at {time}."),
        *("Please have the alarm go off at {time}.", "On weekdays I want to be woken at {time}."),
        *("I have a flight, so wake me at {time}.", "Alarm clock to {time}.", "Ring at {time}, Monday to Friday."),
    ),
    "play_music": (
        *("Play some {genre}.", "Put on {genre} at volume {volume}.", "I'd love to hear {genre}.", "{genre}, please."),
        *("Start {genre}, volume {volume}.", "Let's have {genre} in here.", "Can you play {genre} for me?"),
        *("We want to dance, {genre} at {volume}!", "Background music: {genre}, not louder than {volume}."),
        *("I work better with {genre}.", "Turn on {genre} with the volume at {volume}."),
    ),
    "stop_music": (
        *("Stop the music.", "Turn that song off.", "No more music now.", "Music stop!", "I've heard enough music."),
        *("Please switch the music off, I'm on the phone.", "Quiet, end the music.", "Pause is over, kill the music."),
        *("Shut the music down.", "The music has to stop, the neighbours complain.", "Can you stop playing?"),
        *("I can't concentrate, music off.", "Finish the music for today.", "That's it with the music."),
    ),
    "add_to_list": (
        *("Add {food} to the shopping list.", "We need {food}.", "Put {count} {food} on the shopping list."),
        *("On my to-do list: {todo}.", "I have to {todo}, put that on the todo list.", "Pack list: {thing}."),
        *("Add {thing} to the packing list.", "Write {food} down for the supermarket.", "Todo: {todo}."),
        *("I must not forget to {todo}.", "{count} {thing} on the packing list, please.", "Shopping list, {food}."),
        *("Note that I should {todo}.", "For the trip I need {thing}, put it on the list.", "Get {food} on my list."),
        *("There's no {food} left, add it.", "Please put {todo} among my todos."),
    ),
    "get_weather": (
        *("What's the weather in {city}?", "Will it rain in {city} tomorrow?", "How is {city} this weekend?"),
        *("Weather in {city} for the weekend.", "Is it sunny in {city}?", "Do I need a coat in {city} today?"),
        *("Tell me tomorrow's weather for {city}.", "How cold does it get in {city} tomorrow?", "{city}, weather?"),
        *("We go to {city} on the weekend, what will the weather do?", "What's it like outside in {city}?"),
    ),
    "send_message": (
        *(
            "Tell {name}: {news}",
            "Send {name} a message: {news}",
            "Text {name} that {news}",
            "Message to {name}: {news}",
        ),
        *("Write {name}: {news}", "Let {name} know that {news}", "Please text {name}, {news}", "To {name}: {news}"),
        *("Send this to {name}: {news}", "Could you message {name} that {news}"),
    ),
    "book_room": (
        *("Book a room for {people} on {day} at {hour}.", "Meeting room, {day} {hour}, {people} people."),
        *(
            "We need a room with a projector on {day} at {hour} for {people}.",
            "Reserve a room for {people}, {day} {hour}.",
        ),
        *(
            "Find {people} people a room on {day} at {hour}.",
            "There are {people} of us on {day} at {hour}, book a room.",
        ),
        *(
            "Room on {day} at {hour} for {people} people, projector needed.",
            "I want a meeting room {day} at {hour}, {people} seats.",
        ),
        *("Get me a room for a talk with slides, {people} guests, {day} {hour}, with projector.",),
    ),
    "lock_door": (
        *(
            "Lock the {door} door.",
            "Unlock the {door} door.",
            "Is the {door} door open? Lock it.",
            "Open up the {door}.",
        ),
        *("Secure the {door} door.", "Let me in through the {door}.", "I'm at the {door} door, unlock it please."),
        *("Leave the {door} door unlocked.", "Everyone is home, lock the {door} door.", "{door} door locked, please."),
        *("Make sure nobody gets in by the {door} door.", "The delivery man is at the {door} door, let him in."),
    ),
    "vacuum": (
        *("Vacuum the {room}.", "Start the robot vacuum.", "Send the vacuum to its dock.", "Stop the vacuum."),
        *("The {room} is dusty, vacuum it.", "Let the robot clean the {room}.", "The robot may go home and charge."),
        *(
            "Vacuum the whole home.",
            "Halt the vacuum cleaner at once.",
            "Time to vacuum.",
            "Hoover the {room}, please.",
        ),
        *("The dog lost hair in the {room}, vacuum there.", "Back to the charging station with the vacuum."),
    ),
    "convert_units": (
        *("What are {number} {a} in {b}?", "Convert {number} {a} to {b}.", "How many {b} are {number} {a}?"),
        *("{number} {a} in {b}, please.", "I need {number} {a} as {b}.", "Change {number} {a} into {b}."),
        *("The recipe says {number} {a}, what's that in {b}?", "How much is {number} {a} in {b}?"),
    ),
}
# ways for what small students get wrong: labels, numbers in words, times of day, options
HARDER_WAYS = """\
{minutes} minutes on the timer, it's the {dish}.|Count {minutes} minutes for the {dish}.|{minutes} min timer
The {dish} needs {minutes} more minutes, tell me when.|{hours} hours on the timer, please.|In {hours} hours, beep.
Timer of {hours} hours for the {dish}.|A quarter of an hour for the {dish}, go.|Beep in {minutes} minutes.
Alarm at {time}.|Let me sleep until {time}.|I must be awake at {time}.|Alarm {evening}, for my pills.
Set the alarm to {evening}.|Monday to Friday I rise at {time}.|On working days, alarm at {time}.
Wake us at a quarter to {clock_word}.|Twenty past {clock_word} is when I get up on weekdays.
A room for {people_word} people, {day} at {clock_word} pm, with projector.|{people_word} of us, {day} {hour}, a room.
{day} {hour}, slides to show, {people} people: book a room.|We are {people} on {day} at {hour}, with projector.
{count} {food} for the shopping list.|Buy {count} {food}.|I'm packing {count} {thing}, write it down.
{count} {thing} go into the suitcase.|Put {todo} on my todos.|Don't forget the {food} at the shop.|Also pack {thing}.
My list of todos gets one more: {todo}.|We ran out of {food}, put it on the list.|Volume {percent_word}, {genre}.
{genre} at {percent_word}, please.|Make the robot stop, it is in my way.|The robot shall stop.
The vacuum may rest in its dock now.|The {room} light to {percent_word}."""
# two calls in one sentence
IN_ONE_WAYS = """\
We are all in, lock the {door} and the {other_door} door.|Both the {door} and the {other_door} door should be unlocked.
Lock the {door} door, but unlock the {other_door} one.|{food} and {other_food} on the shopping list.
We need {count} {food} and {other_count} {other_food}.|Pack {thing} and {other_thing}, note both.
Put {count} {food} and {other_count} {other_food} on the list for the shop.|Todos: {todo}, and {other_todo}.
Weather in {city} and {other_city} tomorrow?|Does it rain in {city} or in {other_city} this weekend?
How's the weather in {city}, and how in {other_city}?|{room} at {celsius} degrees, {other_room} at {other_celsius}.
Heat the {room} to {celsius} and the {other_room} to {other_celsius}.
Light on in the {room} and off in the {other_room}.|Lights off in the {room} and the {other_room}.
{room}: light off, blinds closed.|In the {room} blinds open and light at {percent} percent.
{room}: {celsius} degrees and the light on.|Blinds down in the {room}, up in the {other_room}.
Timers for {minutes} and for {other_minutes} minutes.
{minutes} minutes for the {dish} and {other_minutes} for the {other_dish}.|Wake me at {time}, and {genre} now.
Music off and lights out in the {room}.|End the music and lock the {door} door.
{genre} at volume {volume}, and {celsius} degrees in the {room}.|Start {genre} and dim the {room} to {percent} percent.
No more music, and the robot may rest.|Vacuum the {room} and then the {other_room}.
Let the robot clean the {room} and tell {name}: {news}|Tell {name} that {news}, and the same to {other_name}.
Message {name}: {news}, and lock the {door} door.|Unlock the {door} door and light up the {room}.
How much are {number} {a} in {b}, and {other_number} {a}?|{number} {a} and {other_number} {a} in {b}, please.
Rooms for {people} on {day} at {hour} and for {other_people} on {other_day} at {other_hour}.
Book {day} {hour} for {people} people, and {other_day} {other_hour} as well.
Alarm at {time}, blinds in the {room} closed.
Put {food} on the shopping list and set a timer for {minutes} minutes for the {dish}."""
# what sounds like one of the tools, and is none
NEAR_MISS_WAYS = """\
Translate {dish} into {language}.|What's {food} in {language}?|How do you say see you on {day} in {language}?
What is {minutes} times {other_minutes}?|What's {minutes} percent of {other_minutes}?|Add {minutes} and {other_minutes}.
How do I get to {city} by train?|What does a flight to {city} cost?|When does the bus to {city} leave on {day}?
Book me a hotel in {city}.|How many people live in {city}?|What can one see in {city}?|Which country is {city} in?
Turn the TV in the {room} on.|Mute the TV in the {room}.|Record channel {minutes} at {time}.
Open the window in the {room}.|Turn the fan in the {room} on.|Is anybody in the {room}?|Mop the {room}.
Water the plants in the {room}.|Print {people} copies of the report.|Photograph the {door} door.|Call {name}.
Is {name} at home?|Where is {name}?|When is the birthday of {name}?|Did {name} write to me?|How do I cook {dish}?
How long does {dish} take?|Where do I get cheap {food}?|Order {food} for {people}.|Who sang the best {genre}?
What does {thing} cost?|Preheat the oven to {minutes}0 degrees.|Cancel my meeting on {day}."""
LANGUAGES = ("Spanish", "Italian", "Polish", "Korean", "Dutch", "Greek", "Turkish", "Arabic")
HOURS = ("two", "three", "four", "one and a half", 2, 3)
NUMBER_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
UNITS = (("km", "miles"), ("kg", "pounds"), ("celsius", "fahrenheit"))
SERVED_BY_NONE = """\
Who wrote Hamlet?|What is the capital of Peru?|How old is the universe?|Turn on the television.|Change the channel.
Order sushi for two.|Call my mother.|Ring up the doctor's office.|What's on my calendar today?|Read me the news.
What is 12 plus 30?|What's the square root of 81?|Tell me a story about a dragon.|Sing something for me.|How are you?
Thank you so much.|You are funny.|Good night.|Hi!|What's your name?|Open the kitchen window.|Start the washing machine.
Turn the oven to 200 degrees.|Make me a coffee.|Feed the fish.|Mow the lawn.|Water the flowers on the balcony.
Check my e-mail.|Reply to the last e-mail.|Print the invoice.|Scan this page.|Buy a new pair of shoes.
Book a flight to Sydney.|Reserve a table at the Italian restaurant.|Call me a taxi.|How do I get to the station?
Is there a traffic jam on the motorway?|When does the next bus leave?|How much money is in my account?|Pay my rent.
Transfer fifty euros to Jonas.|What's the price of gold?|How did my team play last night?|Who won the election?
Translate thank you into French.|How do you say bread in Spanish?|Spell necessary.|What does ubiquitous mean?
Define photosynthesis.|Write a letter of complaint.|Summarise this article.|Draw me a cat.|Take a photo.
Show me the pictures from the summer.|Play chess with me.|Flip a coin.|Roll two dice.|Pick a number.|Guess who I am.
What should I wear tonight?|What should I cook for dinner?|Give me a recipe for pancakes.|Is milk good for cats?
How many calories has a banana?|I have a headache.|I am bored.|I'm so happy today.|Do you love me?|Are you a robot?
Close the garden gate.|Turn on the fan.|Switch the air purifier on.|Is the fridge door open?|Empty the dishwasher.
Charge the car.|Where did I park the car?|How far is the moon?|Why is the sky blue?|When was Napoleon born?
How tall is Mount Everest?|What language do they speak in Brazil?|Name three rivers in Africa.|Who invented the radio?
Record this conversation.|Turn up the TV.|Pause the film.|Watch the front camera.|Who rang the doorbell?
Find my phone.|What time is it in New York?|What date is Easter this year?|How long until Christmas?
Tell me about black holes.|Help me with my maths homework.|Debug this program.|Which laptop should I buy?
Apply for a new job for me.|Make an appointment with the hairdresser.|Renew my insurance.|Vote for me.
Polish my shoes.|Walk the dog.|Iron my shirts.|Clean the windows.|Change the light bulb.|Repair the tap.
Fill the bathtub.|Flush the toilet.|Set the table.|Peel the potatoes.|Never mind.|Forget it.|That's all.
I didn't say anything.|What can I say.|Sorry, wrong room.|Hm, let me think.|Do you hear that noise?|Nice weather, eh?
My name is Peter.|I was born in May.|We had a great holiday.|The cake was delicious.|See you tomorrow.
Open the sunroof.|Turn the radio on.|Skip this advert.|Subscribe to the channel.|Post this on my profile.
What is the meaning of life?|Is there life on Mars?|How do magnets work?|How many bones has a human?
What's the boiling point of nitrogen?|Who is the president of France?|Where is Timbuktu?|When did the war end?"""


def filled(way: str, chance: random.Random) -> str:
    """A way of asking with its slots filled."""
    return begun(way.format(**slots(chance)))


def begun(text: str) -> str:
    """A sentence with a capital."""
    return text[0].upper() + text[1:]


def listed(texts: str) -> list[str]:
    """Texts of which a line has several."""
    return [text for line in texts.splitlines() for text in line.split("|")]


def slots(chance: random.Random) -> dict[str, object]:
    """What stands in the slots, at random."""
    units = list(chance.choice(UNITS))
    chance.shuffle(units)
    minute = chance.choice((0, 15, 30, 45, 5, 10, 20, 40, 50))
    hour = chance.randint(5, 9)
    clock = chance.choice((f"{hour}:{minute:02d}", f"{hour}:{minute:02d} am", f"half past {hour}", f"{hour} o'clock"))
    evening = chance.choice((f"{chance.randint(13, 22)}:{minute:02d}", f"{chance.randint(6, 10)} pm"))
    percent = chance.choice(tuple(WORDS))
    at = chance.randint(7, 18)
    return {
        "room": chance.choice(ROOMS),
        "percent": chance.choice((percent, chance.randint(5, 99))),
        "percent_word": WORDS[percent],
        "celsius": chance.choice((*range(16, 25), 18.5, 19.5, 20.5, 21.5, 22.5)),
        "minutes": chance.choice((*range(2, 21), 25, 30, 35, 40, 50, 55, 60, 75, 90)),
        "dish": chance.choice(DISHES),
        "time": clock if chance.random() < 0.8 else evening,
        "genre": chance.choice(GENRES),
        "volume": chance.choice((10, 20, 25, 35, 45, 50, 55, 60, 65, 75, 85, 90)),
        "food": chance.choice(FOODS),
        "todo": chance.choice(TODOS),
        "thing": chance.choice(THINGS),
        "count": chance.choice(("two", "three", 2, 3, 4, 5, 6, "ten", 12)),
        "city": chance.choice(CITIES),
        "name": chance.choice(NAMES),
        "news": chance.choice(NEWS),
        "people": chance.choice((*range(2, 16), 18, 25, "six", "three", "nine")),
        "day": chance.choice(DAYS),
        "hour": chance.choice((f"{at}:00", f"{at} o'clock", f"{(at - 1) % 12 + 1} {'am' if at < 12 else 'pm'}")),
        "door": chance.choice(("front", "back", "garage")),
        "number": chance.choice((*range(2, 30), 42, 50, 75, 98.6, 100, 2.5, 120, 250)),
        "a": units[0],
        "b": units[1],
    }


def filled_twice(way: str, chance: random.Random) -> str:
    """A way with slots of two kinds, {room} and {other_room}, which differ."""
    first = slots(chance)
    other = slots(chance)
    while any(first[name] == other[name] for name in first if f"{{other_{name}}}" in way):
        other = slots(chance)
    more = {
        "hours": chance.choice(HOURS),
        "evening": chance.choice(
            (f"{chance.randint(13, 22)}:{chance.choice((10, 15, 30))}", f"{chance.randint(2, 10)} pm")
        ),
        "clock_word": chance.choice(NUMBER_WORDS),
        "people_word": chance.choice(NUMBER_WORDS),
        "language": chance.choice(LANGUAGES),
    }
    return begun(way.format(**first, **{f"other_{name}": value for name, value in other.items()}, **more))


def lowered(text: str) -> str:
    """A sentence as it goes on behind another word: names keep their capital."""
    first = text.split()[0].strip(",:.")
    is_name = first in {*NAMES, *CITIES, *DAYS, "I", "I'm", "I'd", "I've"}
    return text if is_name else text[0].lower() + text[1:]


def ended(text: str) -> str:
    """A sentence before another one."""
    return text if text[-1] in ".!?" else f"{text}."


def different(count: int, make: Callable[[], str], seen: set[str]) -> list[str]:
    """So many texts that are not there yet."""
    found: list[str] = []
    while len(found) < count:
        text = make()
        if text not in seen:
            seen.add(text)
            found.append(text)
    return found


def written() -> list[str]:
    """Every request, in a random order."""
    chance = random.Random(SEED)
    seen: set[str] = set()

    def one() -> str:
        ways = WAYS[chance.choice(tuple(WAYS))]
        text = filled(chance.choice(ways), chance)
        if chance.random() < 0.3:
            around = chance.choice(AROUND)
            text = around.format(ended(text) if around.startswith("{}") else lowered(text))
        return text

    def two() -> str:
        tools = chance.sample(tuple(WAYS), 2) if chance.random() < 0.8 else [chance.choice(tuple(WAYS))] * 2
        first, second = (filled(chance.choice(WAYS[tool]), chance) for tool in tools)
        return chance.choice(JOINED).format(ended(first), lowered(second))

    def of(ways: list[str]) -> Callable[[], str]:
        return lambda: filled_twice(chance.choice(ways), chance)

    rows = [*different(SINGLE, one, seen), *different(PARALLEL, two, seen), *listed(SERVED_BY_NONE)]
    for count, ways in ((HARDER, HARDER_WAYS), (IN_ONE, IN_ONE_WAYS), (NEAR_MISSES, NEAR_MISS_WAYS)):
        rows += different(count, of(listed(ways)), seen)
    chance.shuffle(rows)
    return rows


def main() -> None:
    lines = (json.dumps({"messages": [{"role": "user", "content": text}]}, ensure_ascii=False) for text in written())
    path = Path(__file__).with_name("prompts.jsonl")
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
