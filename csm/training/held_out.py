"""What the embedded model has never been trained on: sixty everyday sentences, a conversation of twenty turns, and the
lists of `csm/assets/evaluation/`.

Evaluation has the model say them; `python -m csm train data` leaves them out of the training speech.
"""

from csm.assets import ASSETS

LISTS = ("homographs.txt", "continuation.txt", "mixed.txt")

SENTENCES: tuple[str, ...] = (
    "Are you still coming over on Thursday, or did something come up?",
    "I can't believe it's already half past nine.",
    "We ran out of coffee again, so I made some tea.",
    "Who left the fridge open all night?",
    "It shouldn't take more than twenty minutes to get there.",
    "My back has been hurting since I moved that couch.",
    "Sounds good to me, but let's check with your parents first.",
    "I'm not sure they take cards, so bring some cash.",
    "You'll never guess who I ran into at the gym.",
    "The kids want to have pancakes for breakfast again.",
    "How long have you two known each other?",
    "She's allergic to nuts, so we'd better skip the cookies.",
    "Hang on a second, I need to find my glasses.",
    "It's the third house on the left, right after the bridge.",
    "Wasn't there supposed to be a concert in the park tonight?",
    "I've got two tickets for Saturday if you're interested.",
    "He didn't say a word during the whole ride home.",
    "We'll need at least six plates and a bigger pot.",
    "Could you speak up a little? The line is really bad.",
    "They've changed the menu since the last time we ate here.",
    "I usually go for a swim before work.",
    "Don't worry, I already fed the cat this morning.",
    "That's exactly what I was trying to tell him.",
    "There's a spare key under the pot by the back door.",
    "Would you mind turning the music down a bit?",
    "My train was forty minutes late because of the storm.",
    "I haven't seen her since we graduated from college.",
    "Let's split the bill, it's easier that way.",
    "What did the dentist say about your tooth?",
    "You can park behind the building, nobody ever checks.",
    "The heating broke down on the coldest day of the year.",
    "I'd love to join you, but I promised to babysit.",
    "Is there anything you'd like me to pick up on the way?",
    "We spent the whole weekend putting those shelves together.",
    "She finally quit her job and opened a flower shop.",
    "Are these seats taken, or can we sit down?",
    "I keep mixing up their names, it's so embarrassing.",
    "Grab a sweater, it gets chilly after sunset.",
    "He's been learning how to drive, and I'm a nervous wreck.",
    "The neighbors are having another barbecue this weekend.",
    "Why don't we just order the same thing as last time?",
    "I thought you said the package would arrive by Tuesday.",
    "My laptop froze right in the middle of the presentation.",
    "There were about fifty people waiting in front of us.",
    "Oh, that reminds me, your aunt called an hour ago.",
    "We could get a puppy, but who's going to walk it?",
    "I burned the toast, but the eggs turned out fine.",
    "Should I wear the green dress or the black one?",
    "It's been raining for eight days straight now.",
    "They're getting married in a tiny village near the coast.",
    "Could we maybe move our lunch to one o'clock?",
    "I'm so full, I couldn't eat another bite.",
    "Somebody parked their truck right across our driveway.",
    "You were right, the second season is much better.",
    "My dad still prints out directions before every trip.",
    "Do we have any batteries left in that drawer?",
    "She runs five miles every morning, even in the snow.",
    "Please text me when you've landed safely.",
    "I honestly don't remember where we parked the car.",
    "Well, it was lovely to see you, take care.",
)

CONVERSATION: tuple[tuple[int, str], ...] = (
    (0, "Hey, how was your trip to the lake last weekend?"),
    (1, "It was great, although we got completely lost on the way there."),
    (0, "Seriously? I thought you'd been to that place before."),
    (1, "We have, but they closed the main road, and my phone had no signal."),
    (0, "So how did you find it in the end?"),
    (1, "We stopped at a farm, and an older lady drew us a little map."),
    (0, "That's so kind of her. Did you at least get to swim?"),
    (1, "Only once, the water was freezing, but the kids didn't care."),
    (0, "We should all go together in August, when it's warmer."),
    (1, "I'd like that. Let's pick a weekend before everyone makes plans."),
)

LONG_CONVERSATION: tuple[tuple[int, str], ...] = CONVERSATION + (
    (0, "The second weekend would suit us best, my sister is away on the first."),
    (1, "Then the second it is. Shall we take one car or two?"),
    (0, "Two, I think. There's no room for five people and the tent in mine."),
    (1, "Right, and you still have our big cooler from last year."),
    (0, "Do I? I must have left it in the garage, behind the bicycles."),
    (1, "No hurry, just don't forget it when you pack."),
    (0, "What about food? We could cook something on the fire on Saturday."),
    (1, "Good idea. I'll bring sausages, and you could make that potato salad."),
    (0, "Sure, everybody seems to like it, even my brother."),
    (1, "Wonderful. I'm looking forward to it already, see you in August."),
)


def asked() -> list[str]:
    """Every text that an evaluation asks for, and the contexts that it gives."""
    texts = [*SENTENCES, *(text for _, text in LONG_CONVERSATION)]
    for name in LISTS:
        lines = (ASSETS / "evaluation" / name).read_text(encoding="utf-8").splitlines()
        texts += [part.strip() for line in lines if not line.startswith("#") for part in line.split(" | ")]
    return list(filter(None, texts))
