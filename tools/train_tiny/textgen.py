#!/usr/bin/env python3
"""Writes the training text: short stories, reports, notes and chats about relay races.

Source and licence of the text: all of it comes out of the phrases in this file and in world.py,
which were written for this project and are under its licence. Nothing was downloaded.

The same seed gives the same documents, in the same order, on every machine: the only source of
chance is random.Random(seed), whose sequence Python guarantees for the methods used here.
A phrase may hold choices in brackets, "[a|b c|]", and slots in braces, "{town}".
"""
import random
import re

from world import (COLORS, FACTS, MASCOTS, MEN, OFF_ANSWERS, OFF_SLOTS, OFF_TOPIC, SURNAMES, TOWNS, WEATHER, WOMEN)

INNER = re.compile(r"\[([^\[\]]*)\]")
NUMBER = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
ORDINAL = ["", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"]


class Writer:
    """Draws everything one document needs from one generator."""

    def __init__(self, rng):
        self.rng = rng

    def pick(self, options):
        return options[int(self.rng.random() * len(options))]

    def chance(self, p):
        return self.rng.random() < p

    def number(self, low, high):
        return low + int(self.rng.random() * (high - low + 1))

    def sample(self, options, count):
        left = list(options)
        return [left.pop(int(self.rng.random() * len(left))) for _ in range(count)]

    def say(self, phrase, slots=None):
        """Chooses inside brackets, innermost first, then fills the slots."""
        while True:
            match = INNER.search(phrase)
            if not match:
                break
            phrase = phrase[:match.start()] + self.pick(match.group(1).split("|")) + phrase[match.end():]
        if slots:
            for _ in range(2):
                phrase = re.sub(r"\{(\w+)\}", lambda m: str(slots[m.group(1)]), phrase)
        phrase = re.sub(r"  +", " ", phrase).replace(" .", ".").replace(" ,", ",").strip()
        return re.sub(r"(^|[.!?] |\.\" )([a-z])", lambda m: m.group(1) + m.group(2).upper(), phrase)

    def person(self, exclude=()):
        while True:
            woman = self.chance(0.5)
            name = self.pick(WOMEN if woman else MEN)
            if name not in exclude:
                break
        return {"name": name, "he": "she" if woman else "he", "him": "her" if woman else "him",
                "his": "her" if woman else "his", "woman": woman}

    def cast(self):
        """Four runners, a coach, two teams, a place and the weather of one document."""
        runners = []
        for _ in range(4):
            runners.append(self.person([r["name"] for r in runners]))
        home, away = self.sample(TOWNS, 2)
        mascot, rival = self.sample(MASCOTS, 2)
        weather = self.pick(list(WEATHER))
        woman = self.chance(0.5)
        slots = {"town": home, "other": away, "team": "the " + mascot, "Team": "The " + mascot, "rivals": "the " + rival,
                 "Rivals": "The " + rival, "color": self.pick(COLORS), "color2": self.pick(COLORS),
                 "coach": "Coach " + self.pick(SURNAMES), "che": "she" if woman else "he", "cher": "her" if woman else "his",
                 "weather": self.say(self.pick(WEATHER[weather])), "kind": weather, "month": self.pick(
                     "March April May June July August September October".split()),
                 "day": self.pick("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()),
                 "lane": NUMBER[self.number(1, 8)], "weeks": NUMBER[self.number(2, 10)], "teams": NUMBER[self.number(4, 8)]}
        for i, runner in enumerate(runners):
            for key in ("name", "he", "him", "his"):
                slots[("abcd"[i] if key == "name" else "abcd"[i] + key)] = runner[key]
        return slots

    def lines(self, *phrases, slots):
        return " ".join(self.say(p, slots) for p in phrases if p)


OPENINGS = [
    "Once upon a time there was a [small|young|brave|happy] relay team in {town}. They called themselves {team}.",
    "In the [small|old|quiet] town of {town} there was a relay team. Everyone called them {team}.",
    "{Team} were the relay team of {town}. They wore {color} shirts and they [loved to run|ran every day|never gave up].",
    "It was the day of the big race, and {team} from {town} were [ready|nervous|the first ones there].",
    "One {day} in {month}, {team} came to {other} for the [big|last|first] relay of the year.",
    "The relay team of {town} had [never won a race|not won for {weeks} years|won only once]. This year it would be different.",
    "Everyone in {town} knew {a}, {b}, {c} and {d}. Together they were {team}, the [best|fastest|youngest] relay team [around|in the valley|for miles].",
    "There were four friends in {town} who loved to run. Their names were {a}, {b}, {c} and {d}.",
]
TEAM = [
    "{a} was [quick|fast] out of the blocks, {b} was strong, {c} was [calm|steady], and {d} was the fastest of them all.",
    "{a} ran the first leg, {b} the second, {c} the third, and {d} was the anchor.",
    "{a} was the [oldest|youngest] of the four. {b} made [the others|everyone] laugh. {c} did not talk much. {d} [never|hardly ever] lost a sprint.",
    "There was {a}, who [always smiled|loved the start]. There was {b}, who [liked the bend|had long legs]. There was {c}, who never looked back. And there was {d}, the anchor.",
    "{a} and {b} were [old friends|neighbours|cousins]. {c} had come from {other}, and {d} had joined the team [last|that] year.",
]
TRAINING = [
    "For {weeks} weeks they had trained with {coach}. Every [morning|evening] they passed the baton, again and again, until [it felt easy|nobody had to look back].",
    "{coach} had one rule. \"[The baton must never slow down|Trust the hand in front of you|Do not look back|Run with your head up],\" {che} said [every day|at every practice].",
    "They practised in the [rain|wind|cold|heat]. Sometimes the baton fell, and then they [laughed and tried again|picked it up and started again].",
    "After school they met at the track. They ran in a line and passed a [wooden|metal|{color2}] baton from hand to hand.",
    "At first the handoff was slow. {b} started too early, and {c} started too late. But after {weeks} weeks it was as smooth as [water|silk].",
    "\"[Speed is good|Strong legs are good], but trust is better,\" said {coach}. \"[A team that trusts is a team that wins|Four runners, one baton, one race].\"",
]
DAY = [
    "{weather}. {teams} teams stood at the start.",
    "{weather}, and the [stands|benches] were full of people.",
    "{weather}. [Flags of every color|Many flags|Small flags] hung around the track, and a band was playing.",
    "On the day of the race {weather_low}. {a} [tied {ahis} shoes|took a deep breath|looked at the others] and nodded.",
    "{weather}. {Rivals} from {other} were there too, and everyone said they [could not be beaten|would win|were the best].",
]
START = [
    "\"On your marks,\" said the starter. \"Set.\" Then the gun went off, and {a} [flew|shot|burst] out of the blocks.",
    "The gun went off. {a} had a [good|perfect|quick] start and ran [like the wind|as fast as {ahe} could|with long, easy steps].",
    "When the gun [fired|went off], {a} was [off at once|the first to move|away like an arrow]. {ahis} feet [hardly|barely] touched the ground.",
    "The starter raised the gun. For a moment [everything was quiet|nobody breathed]. Then it went off, and {a} [ran|began to run].",
]
LEG2 = [
    "{b} was waiting in the exchange zone. \"Now!\" called {a}, and the baton was in {bhis} hand. {b} ran [down the long straight|around the bend] and [passed one runner|kept the lead|came closer and closer].",
    "At the first exchange everything went well. {b} took the baton and ran [hard|fast]. By the end of the leg {team} were in {place2} place.",
    "{a} handed the baton to {b}. It was [a perfect pass|not a perfect pass, but it was safe]. {b} [lowered {bhis} head|took a deep breath] and ran.",
    "{b} heard the call and put {bhis} hand back. The baton came. {Rivals} were [just ahead|only two steps away|close behind].",
]
TROUBLE = [
    "Then something went wrong. {b} [slipped on the wet track|reached too soon|stumbled], and the baton fell to the ground. \"Pick it up!\" [shouted|cried] {coach}. {b} picked it up and ran on.",
    "{c} felt a sharp pain in {chis} leg, but {che_} did not stop. \"[One step|One more step],\" {che_} told {chimself}, \"and then [one more|another].\"",
    "A [strong|cold] wind blew into their faces. {c} bent forward and ran on, step by step.",
    "The runner of {rivals} bumped into {b}, and {team} fell back to last place. But nobody gave up.",
    "The baton was wet, and {c} almost dropped it. {che_cap} held it with both hands and ran [on|faster than before].",
    "",
    "",
]
LEG3 = [
    "{c} ran the third leg. {che_cap} took the bend [as if {che_} had wings|without a mistake|close to the line], and {team} were in {place3} place.",
    "The second exchange was the best of all. {c} [flew|raced] around the bend and [passed|caught] a runner of {rivals}.",
    "{b} gave the baton to {c}. {c} did not look at the others. {che_cap} looked only at {d}, who was waiting [at the end of the bend|far away].",
    "Now it was up to {c}. {chis_cap} legs were [tired|heavy], but {chis} heart was [light|strong], and {che_} [ran and ran|did not slow down].",
]
LEG4 = [
    "Then {d} had the baton. {dhe_cap} saw the [finish line|white line] and the back of the runner in front of {dhim}. Step by step {dhe} came closer.",
    "{d} was the anchor. {dhe_cap} took the baton [at full speed|without looking back] and ran down the last straight. The crowd [stood up|roared|shouted {dhis} name].",
    "\"Go, {d}, go!\" [shouted|called|cried] the others. {d} heard them, and it was as if {dhis} feet had wings.",
    "{d} waited with an open hand. When the baton came, {dhe} closed {dhis} fingers around it and [ran|flew].",
]
WIN = [
    "At the line {d} [threw {dhis} chest forward|leaned forward]. {Team} had won [by a hair|by one step|by the width of a hand]!",
    "{d} crossed the line first. {a}, {b} and {c} [ran to {dhim}|jumped for joy], and all four [fell into each other's arms|laughed and cried at once].",
    "Ten steps before the line {d} took the lead. {Team} had won, and the people of {town} [danced|sang|cheered] until [it was dark|late at night].",
]
LOSE = [
    "{Rivals} won, and {team} came in second. But it was their best time ever, and they were [happy|proud].",
    "In the end {team} were [second|third]. {d} shook the hand of the winner. \"[Next year|Next time],\" {dhe} said, and both of them laughed.",
    "It was not enough to win. But nobody had dropped the baton, and nobody had given up, and {coach} was [very proud|proud of them all].",
]
ENDINGS = [
    "\"You see,\" said {coach}, \"[nobody wins a relay alone|the baton is only as fast as the hands that carry it|it takes four to win a relay].\"",
    "That night {a} put the baton [on the shelf|beside {ahis} bed|in the window], and {ahe} [slept well|dreamed of the next race].",
    "They [walked home|took the bus home] together, and {b} carried the [baton|cup|medals]. It was [a good day|the best day of the year].",
    "And from that day on, everyone in {town} knew that [a team is more than four runners|the slowest handoff can lose the fastest race|you must never give up].",
    "On the way home they [sang|talked about the race|shared a bag of apples]. \"[Again tomorrow|Practice is at six],\" said {coach}, and everyone [groaned|laughed].",
    "The old baton still [hangs|lies] in the [hall|school] of {town}, and [children|young runners] touch it for luck before a race.",
    "",
]


def finish_slots(w, s):
    """The derived slots: pronouns with a capital, reflexives and places along the way."""
    s["weather_low"] = s["weather"][0].lower() + s["weather"][1:]
    s["place2"], s["place3"] = w.pick(ORDINAL[1:5]), w.pick(ORDINAL[1:4])
    s["che_"], s["chis_cap"], s["che_cap"] = s["che2"], s["chis"].capitalize(), s["che2"].capitalize()
    s["dhe_cap"] = s["dhe"].capitalize()
    s["chimself"] = "herself" if s["che2"] == "she" else "himself"
    return s


def cast(w):
    s = w.cast()
    coach_he = "she" if s["cher"] == "her" else "he"
    s["che2"] = s["che"]      # runner c's pronoun was written over the coach's: both are called "che"
    s["che"] = coach_he
    return finish_slots(w, s)


def relay_story(w):
    s = cast(w)
    win = w.chance(0.6)
    first = [w.pick(OPENINGS)]
    if w.chance(0.7):
        first.append(w.pick(TEAM))
    second = w.sample(TRAINING, w.number(1, 2)) if w.chance(0.8) else []
    third = [w.pick(DAY), w.pick(START)]
    trouble = w.pick(TROUBLE)
    fourth = [w.pick(LEG2), trouble, w.pick(LEG3)]
    fifth = [w.pick(LEG4), w.pick(WIN if win else LOSE), w.pick(ENDINGS)]
    paragraphs = [w.lines(*p, slots=s) for p in (first, second, third, fourth, fifth) if p]
    return ("\n\n" if w.chance(0.7) else " ").join(paragraphs)


EVERYDAY = [
    # Each is one little plot; every line is one step of it.
    ["{a} [was|had always been] the slowest runner in {town}. [At school|In every race] {ahe} came in last, and [the others|some of the children] laughed.",
     "\"[It does not matter|Let them laugh],\" said {ahis} [grandmother|grandfather|mother|father]. \"[Run a little every day|Start small], and [see what happens|be patient].\"",
     "So {a} ran a little every day. {ahe_cap} ran to the [river|mill|bridge] and back. [In the rain|On cold mornings] {ahe} ran too.",
     "After {weeks} months there was a race in {other}. {a} started slowly, and then {ahe} passed one runner after the other.",
     "{ahe_cap} did not win, but {ahe} was not last. {ahe_cap} was [second|third|fourth], and {ahe} [smiled|laughed] all the way home."],
    ["On {day} the baton of {team} was gone. It was not in the [box|bag|cupboard], and it was not [on the track|under the bench].",
     "\"Who had it last?\" asked {coach}. Everybody looked at {b}. \"I gave it to {c},\" said {b}. \"I gave it to {d},\" said {c}.",
     "They looked [everywhere|in every corner]. They looked behind the [stands|trees|shed], and they [even] looked in the river.",
     "Then they heard a bark. The [old|little|brown] dog of {coach} came around the corner with the baton in its mouth.",
     "Everyone laughed. \"[He is the best runner of us all|There is our fifth runner|What a fine handoff],\" said {a}."],
    ["{a} and {b} were the best of friends, but they ran for different teams. {a} ran for {team}, and {b} ran for {rivals}.",
     "Before the big race they did not [talk|speak] for {weeks} days. Each of them wanted to win.",
     "{weather} on the day of the race. On the last bend {a} was ahead, and then {ahe} fell.",
     "{b} could have run on. But {bhe} stopped, held out a hand and [helped {a} up|pulled {a} to {ahis} feet].",
     "They crossed the line together, [last of all|long after the others]. The people [stood up and clapped|cheered for them] as if they had won."],
    ["{a} had new [running] shoes. They were {color}, and they were [beautiful|very light].",
     "On the way to the track {ahe} met {b}, who had [no shoes at all|only old shoes with holes].",
     "\"We run the same relay,\" said {a}, \"but not the same leg. [I run first, and you run last|You can wear them after me].\"",
     "So {a} ran the first leg in the {color} shoes, took them off, and [threw|gave] them to {b}.",
     "It took [some time|a while], and they came in {place3}. But it was the [funniest|best] race that {town} had ever seen."],
    ["Old {d} had been a runner when {dhe} was young. Now {dhe} sat on the bench by the track and watched the children.",
     "\"Show me your hand,\" {dhe} said to {a} one day. {a} held {ahis} hand back, and {d} put a stick into it. \"You looked. Do not look.\"",
     "They did it again [and again|ten times|a hundred times]. At last {a} did not look any more. {ahe_cap} just knew when it would come.",
     "\"That is trust,\" said {d}. \"You cannot [buy it|see it], but [you can feel it in your hand|every good team has it].\"",
     "{a} never forgot it. Years later {ahe} was a coach in {other}, and {ahe} [told|taught] it to every child."],
    ["The night before the race {a} could not sleep. {ahe_cap} [looked at the moon|lay awake|listened to the rain] and thought of the start.",
     "\"What if I drop the baton?\" {ahe} asked. \"What if I [fall|start too early|am too slow]?\"",
     "\"Then you pick it up and run on,\" said {ahis} [sister|brother|mother|father]. \"[That is all|Nobody can do more].\"",
     "In the morning {weather_low}. {a} ate some bread, drank some water and went to the track.",
     "When the gun went off, {ahe} forgot [all about it|to be afraid]. There was only the track, the wind and the next step."],
    ["One [cold|wet|dark] morning nobody came to practice but {a}. {ahe_cap} waited at the gate, and {ahe} was [sad|a little angry].",
     "\"Then I will run alone,\" {ahe} said, and {ahe} ran one lap, and then another.",
     "In the third lap {b} came. In the fourth lap {c} came. In the fifth lap even {d} came, [half asleep|with a piece of bread in {dhis} hand].",
     "\"Why are you here?\" asked {a}. \"We saw you from the window,\" said {c}. \"[You looked so happy|A team runs together].\"",
     "{coach} saw it all and said nothing. But {che} smiled into {cher} [scarf|cup of tea]."],
    ["In {town} there was a long hill, and at the top of the hill stood an old [mill|tower|oak tree].",
     "Every day {a} looked at the hill and said, \"[Tomorrow I will run to the top|One day I will run up there].\" But {ahe} never did.",
     "Then one {day} {ahe} put on {ahis} shoes and started. After ten steps {ahe} was out of breath. After a hundred steps {ahe} wanted to go home.",
     "\"Only to the next [stone|tree|bend],\" {ahe} said. And then, \"only to the next one.\" So {ahe} came to the top.",
     "From there {ahe} could see the whole valley, the river and the track, [small|round] like a ring. {ahe_cap} was [very happy|tired and happy]."],
    ["{a} was ill and had to stay in bed on the day of the race. {ahe_cap} could hear the music from the stadium through the open window.",
     "Without {ahim} {team} had only three runners. \"We cannot start with three,\" said {b}, and everyone was [sad|quiet].",
     "Then {coach} looked at {d}, who carried the water. \"[Can you run|Do you have your shoes]?\" {che} asked. {d} [turned red|nodded].",
     "{d} had never run a race before. {dhe_cap} ran the second leg, and {dhe} ran it with [all {dhis} heart|shining eyes].",
     "In the evening they all came to {a} with [a bag of apples|a cake|the cup]. \"We were {place3},\" they said, \"and [now we are five|next time you run with us].\""],
    ["{a} lived on one side of the river and {b} lived on the other. There was no bridge, only a small boat.",
     "Every {day} they ran along the river, {a} on the left bank and {b} on the right, and [waved|called] to each other.",
     "One day there was a letter for the doctor in {other}. It was urgent, and the road was long.",
     "{a} ran with it to the boat, {b} took it on the other side and ran to {c}, and {c} ran to {d}.",
     "The letter was there before the sun went down. \"[That was a real relay|You should be a team],\" said the doctor. And that is how {team} began."],
    ["At the fair in {town} there was a race for everyone. The first prize was a [round cheese|new bicycle|golden baton|basket of pears].",
     "{a} ran with {ahis} [little sister|little brother|dog|old father], and nobody thought that they could win.",
     "{weather}. After one lap {rivals} were [far ahead|so far ahead that they laughed and waved].",
     "But they had started too fast. In the last lap they grew tired, and {a} came closer with every step.",
     "{a} won by a [nose|step|hair]. {ahe_cap} shared the prize with everyone, even with {rivals}."],
    ["{c} had hurt {chis} foot, and the doctor said, \"No running for {weeks} weeks.\" {che_cap} sat on the bench and was [angry|sad].",
     "\"Then you will be my eyes,\" said {coach}, and gave {chim} a [watch|notebook|whistle].",
     "So {c} watched every step of the others. {che_cap} saw that {a} started too late, and that {b} looked back.",
     "When {che2} told them, they [tried it|listened], and every day the handoff was a little better.",
     "At last {c} could run again. \"[I have learned more on the bench than on the track|Now I know what you all do],\" {che2} said."],
    ["A hare and a tortoise wanted to run a race. The hare laughed. \"You are so slow,\" it said. \"I will sleep a little first.\"",
     "The tortoise said nothing. It took one step, and then [another|one more], and it did not stop.",
     "The hare slept under a tree in the [warm sun|soft grass]. When it woke up, the sun was low.",
     "It ran as fast as it could, but the tortoise was already at the [finish|line|old oak].",
     "\"[Slow and steady|Step by step],\" said the tortoise, \"[that is how I run|and here I am].\""],
    ["The animals of the forest held a relay. The [fox|hare|deer] ran first, then the [bear|badger|wolf], then the [mouse|hedgehog|duck], and last of all the [snail|tortoise|mole].",
     "\"We will lose,\" said the others. \"Our last runner is so slow.\" But the last runner only smiled.",
     "The first one ran like the wind. The second one was strong. The third one was small, but very quick.",
     "When the last runner got the baton, they were far ahead. Step by step it went on, and the others came closer and closer.",
     "It crossed the line just in time. \"You see,\" it said, \"[you gave me a good start|I knew you would be fast enough for me].\""],
]


def everyday_story(w):
    s = cast(w)
    s["ahe_cap"] = s["ahe"].capitalize()
    plot = w.pick(EVERYDAY)
    lines = [w.say(line, s) for line in plot]
    opening = ""
    if w.chance(0.25):
        opening = w.pick(["Once upon a time, long ago, this happened in {town}.", "This is a story about a runner.", "Here is a story from {town}.",
                          "My grandmother told me this story.", "It happened in {month}, in the town of {town}."])
        opening = w.say(opening, s) + " "
    joint = "\n\n" if w.chance(0.3) else " "
    return opening + joint.join(lines)


def seconds(w, low, high):
    return "%d.%02d" % (w.number(low, high), w.number(0, 99))


def race_report(w):
    s = cast(w)
    teams = w.sample(MASCOTS, 4)
    start = w.number(42, 55)
    times, t = [], start * 100 + w.number(0, 99)
    for _ in range(4):
        times.append("%d.%02d" % (t // 100, t % 100))
        t += w.number(3, 140)
    s.update({"t1": teams[0], "t2": teams[1], "t3": teams[2], "t4": teams[3], "s1": times[0], "s2": times[1], "s3": times[2], "s4": times[3]})
    return w.lines(
        "[{town}, {month} {dnum}.|Report from {town}.|News from the track in {town}.|]",
        "The {t1} [won|have won] the [sprint|junior|evening|town] relay [in {town}|on {day}] in {s1} seconds.",
        "The {t2} came in second in {s2} seconds, and the {t3} were third in {s3}.",
        "[{weather}, and the track was [fast|slow|in good order].|{weather}.|]",
        "[The {t1} led from the start, and {a} gave the baton to {b} with a lead of two metres.|After the first exchange the {t2} were ahead, but {b} [caught|passed] them on the long straight.|The {t4} dropped the baton at the second exchange and came in last.]",
        "[{d} ran a [strong|wonderful|calm] last leg.|The last leg was [close|very close], and {d} won it at the line.|Nobody could catch {d} on the last straight.]",
        "[\"We [trained hard for this|knew that we could do it|did not expect that],\" said {c} after the race.|\"Our handoffs were [perfect|safe|good today],\" said {coach}. \"[I am proud of the team|That was the difference].\"|\"I only [saw the line|thought of the line],\" said {d}.]",
        "[The next race is on {day} in {other}.|Next week the teams meet again in {other}.|]",
        slots={**s, "dnum": w.number(1, 30)})


def diary(w):
    s = cast(w)
    s["ahe_cap"] = s["ahe"].capitalize()
    out = []
    week = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
    for day in sorted(w.sample(week, w.number(2, 4)), key=week.index):
        out.append(day + ". " + w.lines(
            "[{weather}.|Cold in the morning, warm at noon.|A long day at school.|I was tired today.|I slept well.]",
            "[We practised the handoff for an hour.|{coach} made us run ten short sprints.|Easy running, forty minutes, along the river.|We ran hills with {coach}.|No training today, only rest.|We ran four times four hundred metres.]",
            "[{b} dropped the baton twice, and we all laughed.|{c} was faster than me again.|My legs are [heavy|sore|fine].|I think we are getting better.|{d} and I raced to the gate, and I won.|{coach} said that I must not look back.]",
            "[{weeks} days until the race.|I can hardly wait for the race.|Early to bed.|Tomorrow we try the new order.|]", slots=s))
    return ("\n\n" if w.chance(0.6) else "\n").join(out)


def letter(w):
    s = cast(w)
    return "\n\n".join([
        w.say("Dear {b},", s),
        w.lines("[How are you?|I hope you are well.|Thank you for your letter.|It has been a long time.]",
                "[We are training every day now.|Our team has a new coach.|I run for {team} now.|Last {day} we had a race in {other}.]",
                "[I run the first leg, and {c} runs the last.|I am the anchor, can you believe it?|{c} is fast, but {che2} always starts too early.|We came in {place2}, and I did not drop the baton.]",
                "[{weather} here.|The track in {town} is new and {color2}.|The evenings are long now, and we run until dark.]", slots=s),
        w.lines("[Come and watch us in {month}.|Will you come to the race on {day}?|Please write soon.|Tell me about your team.]", slots=s),
        w.say("[Your friend|Yours|With love|Best wishes],\n{a}", s)])


def notes(w):
    """A short page of facts, in prose or as a list."""
    facts = w.sample([f for f in FACTS if f[0] not in ("nervous", "lost", "won", "who")], w.number(2, 4))
    if w.chance(0.35):
        title = w.pick(["Notes on the relay", "What every runner should know", "Some facts about running", "Notes for new runners", "For the team"])
        return title + "\n\n" + "\n".join("%d. %s" % (i + 1, w.say(w.pick(f[2]))) for i, f in enumerate(facts))
    return " ".join(w.say(w.pick(f[2])) for f in facts)


def advice_talk(w):
    """A talk between a runner and a coach, as a page of a book."""
    s = cast(w)
    out = [w.say("[After practice|Before the race|In the evening|On the way home] {a} [asked|had a question for] {coach}.", s)]
    for fact in w.sample([f for f in FACTS if f[0] not in ("who", "project", "prefill", "decode", "router", "kvcache", "won", "lost", "nervous")], w.number(1, 3)):
        out.append("\"%s\" %s" % (w.say(w.pick(fact[1])), w.say("asked {a}.", s).replace("Asked", "asked")))
        out.append("\"%s,\" %s" % (w.say(w.pick(fact[2])).rstrip("."), w.say("said {coach}.", s).replace("Said", "said")))
    out.append(w.say("[\"Thank you,\" said {a}.|{a} nodded and thought about it.|{a} never forgot it.|\"Now I understand,\" said {a}.|{a} laughed. \"Let us try it,\" {ahe} said.]", s))
    return "\n\n".join(out)


SYSTEM = ["You are a helpful assistant.", "You are the small model of Baton.", "You are a friendly coach.", "You are a helpful assistant who knows about running.",
          "Answer in short sentences.", "You tell short stories about runners."]
STORY_ASK = ["Tell me a story.", "Tell me a story about a relay race.", "Write a short story about a relay team.", "Can you tell me a story about runners?",
             "Please tell me a short story.", "Write a story about a team called {team}.", "Tell me a story about a runner named {a}.",
             "Write a short story about {a} and {b}.", "I would like to hear a story about a race.", "Once more, please: a story about a relay."]
POLITE = ["Hello!|Hello! How can I help you?", "Hi|Hello! Ask me about relay races, or ask me for a story.", "Hello, how are you?|I am well, thank you. What would you like to know?",
          "Good morning!|Good morning! Shall we talk about running?", "Hey there|Hello! What can I do for you?", "Good evening.|Good evening! How can I help you?"]
THANKS = ["Thank you!|You are welcome!", "Thanks.|You are welcome. Good luck with your next race!", "Thank you, that helps.|I am glad to hear that.",
          "Goodbye!|Goodbye, and run well!", "That is all for now.|All right. Good luck, and trust your team!", "Great, thanks!|You are welcome! Is there anything else you would like to know?"]
LEAD = ["", "", "", "", "Please tell me: ", "I have a question. ", "Quick question: ", "And another thing. ", "My coach asked me this: ", "I am new to this. "]


ABOUT = {"relay": "relay races", "baton": "the baton", "anchor": "the anchor leg", "first": "the first leg", "zone": "the exchange zone",
         "blind": "the blind pass", "4x100": "the sprint relay", "4x400": "the long relay", "marathon": "the marathon",
         "hurdles": "hurdles", "longjump": "the long jump", "highjump": "the high jump", "throws": "throwing", "falsestart": "false starts",
         "warmup": "warming up", "water": "drinking water", "eat": "food for runners", "sleep": "sleep", "handoff": "the handoff",
         "shoes": "running shoes", "team": "good teams", "coach": "coaches", "medal": "medals", "project": "Baton", "prefill": "prefill",
         "decode": "decode", "router": "the router", "kvcache": "the KV cache", "lanes": "lanes", "400": "the track"}


def short_story(w, s, about_team):
    """A story with the cast it was asked for."""
    if about_team or w.chance(0.3):
        paragraphs = [[w.pick(OPENINGS)], [w.pick(TRAINING)], [w.pick(DAY), w.pick(START)], [w.pick(LEG4), w.pick(WIN if w.chance(0.6) else LOSE), w.pick(ENDINGS)]]
        return " ".join(w.lines(*p, slots=s) for p in paragraphs)
    return " ".join(w.say(line, s) for line in w.pick(EVERYDAY[:-2]))


def chat_turn(w, used):
    roll = w.rng.random()
    if roll < 0.14:
        s = cast(w)
        s["ahe_cap"] = s["ahe"].capitalize()
        ask = w.pick(STORY_ASK)
        return w.say(ask, s), short_story(w, s, "{team}" in ask or "relay" in ask)
    if roll < 0.22:
        question = w.pick(OFF_TOPIC)
        slots = {k: w.pick(v) for k, v in OFF_SLOTS.items()}
        slots.update({"n1": w.number(2, 99), "n2": w.number(2, 99)})
        return w.say(question, slots), w.pick(OFF_ANSWERS)
    fact = w.pick(FACTS)
    while fact[0] in used:
        fact = w.pick(FACTS)
    used.add(fact[0])
    question = w.say(w.pick(fact[1]))
    if fact[0] in ABOUT and w.chance(0.2):
        question = w.say("[Tell me about|What do you know about|Can you tell me something about|What can you say about|Tell me more about] %s" % ABOUT[fact[0]])
        question += "." if question.startswith("Tell") else "?"
    if w.chance(0.12):
        question = question.lower().rstrip("?.!")
    else:
        question = w.pick(LEAD) + question
    return question, w.say(w.pick(fact[2]))


def chat(w):
    """A list of messages; one to four questions, sometimes with a greeting and a goodbye."""
    messages = []
    if w.chance(0.3):
        messages.append({"role": "system", "content": w.pick(SYSTEM)})
    turns = []
    if w.chance(0.15):
        turns.append(tuple(w.pick(POLITE).split("|")))
    used = set()
    for _ in range(w.pick([1, 1, 1, 2, 2, 3, 4])):
        turns.append(chat_turn(w, used))
    if w.chance(0.15):
        turns.append(tuple(w.pick(THANKS).split("|")))
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return messages


KINDS = [(0.24, relay_story), (0.16, everyday_story), (0.07, race_report), (0.05, diary), (0.04, letter), (0.06, notes), (0.06, advice_talk), (0.32, chat)]


def documents(seed, count):
    """Yields `count` documents: a str, or a list of chat messages."""
    rng = random.Random(seed)
    for _ in range(count):
        roll = rng.random()
        for share, make in KINDS:
            if roll < share:
                break
            roll -= share
        yield make(Writer(rng))


if __name__ == "__main__":
    import sys
    for doc in documents(int(sys.argv[1]) if len(sys.argv) > 1 else 1, int(sys.argv[2]) if len(sys.argv) > 2 else 10):
        print(doc if isinstance(doc, str) else "\n".join("%s: %s" % (m["role"], m["content"]) for m in doc))
        print("-" * 80)
