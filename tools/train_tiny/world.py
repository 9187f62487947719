"""The little world that the training text is about: names, places and facts.

Everything here was written for this project. Towns and people are invented; the facts about
athletics are common knowledge, and the facts about serving models are those of Baton itself.
"""

WOMEN = """Ada Alma Anna Beth Clara Dina Edith Ella Emma Eva Fay Flora Grace Hana Hilda Ida Iris Ivy
Jana June Kira Lena Lily Lola Lucy Mara Maya Mia Mina Nadia Nell Nina Nora Olga Pia Rosa Ruth Sara Tess
Tilda Uma Vera Wanda Yara Zoe""".split()
MEN = """Adam Amos Ben Boris Carl Dan Dario Eli Emil Finn Felix Gus Hans Henry Hugo Ian Jack Jonas Karl
Leo Liam Luka Mark Max Milo Nico Noah Olaf Omar Oscar Otto Paul Pedro Ravi Rolf Sam Seth Simon Tim Theo
Tom Uri Victor Wim Yan Zack""".split()
TOWNS = """Ashford Birchwood Blackwater Clayton Coldbrook Dunmore Eastvale Elmhurst Fairhaven Foxhill
Glenwood Greenfield Harrow Highgate Kingsbridge Lakeside Longmeadow Maplewood Millbrook Northport Oakdale
Oldbridge Pinecrest Redcliff Riverton Rosewood Sandford Silverton Southbay Stonebridge Thornbury Westbrook
Whitefield Willowdale Windmill Woodside""".split()
MASCOTS = """Arrows Badgers Bears Comets Cranes Deer Eagles Falcons Foxes Geese Hares Hawks Herons Hornets
Horses Larks Lions Lynxes Otters Owls Panthers Ravens Robins Rockets Sparrows Stags Swallows Swifts Tigers
Wolves""".split()
COLORS = "red blue green yellow white orange purple silver golden black".split()
SURNAMES = "Adler Baker Brook Carter Cole Fisher Ford Grant Hale Hill Lane Marsh Miller Moss Page Reed Stone Vale West Wood".split()

WEATHER = {
    "sunny": ["The sun was [shining|bright|high and warm]", "The sky was [clear and blue|blue without a cloud|bright and clear]",
              "It was a [sunny|warm|bright|lovely] day", "A [warm|bright|golden] sun stood over the [track|stadium|town]"],
    "rainy": ["It was raining", "Rain fell on the [track|stadium|town]", "The sky was [grey|dark] and it rained [softly|hard|without a break]",
              "The [track|grass] was wet from the rain", "A [cold|soft|steady] rain had started in the night"],
    "windy": ["A strong wind blew [across the track|from the west|from the hills]", "It was a windy day", "The flags [snapped|danced] in the wind",
              "The wind was [strong|cold|sharp] that day"],
    "cold": ["It was a cold morning", "Frost lay on the grass", "The air was cold and clear", "Snow lay on the hills, and the air was cold"],
    "foggy": ["Fog lay over the [track|field|river]", "It was a grey and foggy morning", "A thin fog hid the [far bend|trees|hills]"],
}

# Questions and answers. Each entry: topic, ways to ask, ways to answer. Brackets are choices.
FACTS = [
    ("relay", ["What is a relay race?", "What is a relay?", "Can you explain what a relay race is?", "How does a relay race work?", "Explain a relay race to me."],
     ["A relay race is a race for teams. Each runner runs one part of the distance, which is called a leg, and then [hands|passes] the baton to the next runner.",
      "In a relay race, [a team of four runners shares|four runners of one team share] the distance. Each one carries the baton for one leg and hands it to the next. The team whose last runner crosses the line first wins."]),
    ("baton", ["What is a baton?", "What is a relay baton?", "What does a baton look like?", "What is a baton made of?", "How long is a baton?", "Tell me about the baton."],
     ["A baton is a [short|smooth], hollow tube that the runners of a relay team pass from hand to hand. It is about thirty centimetres long and it is made of wood, metal or plastic.",
      "The baton is a light, hollow tube of about thirty centimetres. It must weigh at least fifty grams, and it must be carried [over the finish line|all the way to the end]."]),
    ("anchor", ["Who is the anchor?", "What does the anchor do?", "What is the anchor leg?", "Who runs last in a relay?", "What is an anchor in a relay race?"],
     ["The anchor is the last runner of a relay team. The anchor carries the baton over the finish line, so teams often put their fastest runner there.",
      "The last leg of a relay is called the anchor leg. The runner who runs it is the anchor, and is often the fastest of the team."]),
    ("first", ["Who runs first in a relay?", "Who should run the first leg?", "What does the first runner do?"],
     ["The first runner starts from the blocks, so a team [puts|likes to put] a good starter there. The first runner holds the baton in one hand while waiting for the gun.",
      "A runner with a quick start should run the first leg. The first runner carries the baton out of the blocks and around the first bend."]),
    ("zone", ["What is the exchange zone?", "How long is the exchange zone?", "Where must the baton be passed?", "What is a changeover zone?"],
     ["The exchange zone is the part of the track where the baton must be passed. In the sprint relay it is thirty metres long. If the baton changes hands outside it, the team is [out|disqualified].",
      "The baton must be passed inside the exchange zone. It is marked on the track, and in the sprint relay it is thirty metres long."]),
    ("drop", ["What happens if a runner drops the baton?", "What if the baton falls?", "Can you pick up a dropped baton?", "Is it over if someone drops the baton?"],
     ["If the baton falls, the runner who dropped it may pick it up and run on, as long as nobody else is [hindered|blocked]. The team loses time, but it is still in the race.",
      "A dropped baton is not the end. The runner who dropped it picks it up and goes on. Nobody else may [do it|pick it up] instead."]),
    ("blind", ["What is a blind pass?", "What is a blind handoff?", "How do sprinters pass the baton?", "Why does the next runner not look back?"],
     ["In a blind pass the next runner does not look back. The runner starts at a mark, holds one hand [back|behind], and waits for the call. It saves time, but it needs [a lot of practice|much trust and practice].",
      "Sprinters use a blind pass. The incoming runner calls, the next runner puts a hand back without looking, and the baton is pushed into the open hand."]),
    ("visual", ["What is a visual pass?", "How is the baton passed in the long relay?", "Does the next runner look back in the long relay?"],
     ["In a visual pass the next runner looks back and takes the baton from the hand of the tired runner. It is used in longer relays, where the incoming runner may be [slow|tired] at the end.",]),
    ("400", ["How long is a lap?", "How long is a running track?", "How far is one lap of the track?"],
     ["One lap of a running track is four hundred metres, measured in the inside lane.", "A lap in the inside lane is four hundred metres long. The outer lanes are a little longer, so the starts are staggered."]),
    ("4x100", ["What is the four by one hundred relay?", "How long is the sprint relay?", "How far does each runner run in the sprint relay?"],
     ["In the four by one hundred relay, four runners run one hundred metres each. Together that is one lap of the track.",
      "The sprint relay is one lap of the track. Each of the four runners runs about one hundred metres with the baton."]),
    ("4x400", ["What is the four by four hundred relay?", "How far does each runner run in the long relay?", "How long is the long relay?"],
     ["In the four by four hundred relay, each of the four runners runs one full lap of four hundred metres. It is often the last race of the day.",
      "Each of the four runners runs one lap. That makes four laps, or sixteen hundred metres, in all."]),
    ("lanes", ["How many lanes does a track have?", "Why are the starts staggered?", "Why do the runners start at different places?"],
     ["Most tracks have eight lanes. The outer lanes are longer around the bend, so the runners in them start further ahead. This is called a stagger.",
      "The outer lanes are longer around the bends. So the runners start at different places, and everyone runs the same distance."]),
    ("marathon", ["How long is a marathon?", "What is a marathon?", "How far is a marathon?"],
     ["A marathon is a road race of forty-two kilometres and one hundred and ninety-five metres.", "A marathon is a little more than forty-two kilometres long. It is run on roads, and it takes most people four hours or more."]),
    ("hurdles", ["What are hurdles?", "How many hurdles are in a race?", "What is a hurdle race?"],
     ["In a hurdle race the runners jump over ten barriers on their way to the finish. A hurdle that falls costs time, but it does not end the race.",
      "Hurdles are light barriers on the track. There are ten of them in each lane, and the runners clear them in full stride."]),
    ("longjump", ["What is the long jump?", "How does the long jump work?"],
     ["In the long jump an athlete runs up, takes off from a board and lands in sand. The distance is measured from the board to the nearest mark in the sand.",]),
    ("highjump", ["What is the high jump?", "How does the high jump work?"],
     ["In the high jump an athlete runs up and jumps over a bar without knocking it down. After each round the bar is raised. Three misses in a row, and the athlete is out.",]),
    ("throws", ["What is the javelin?", "What do throwers throw?", "What are the throwing events?"],
     ["There are four throwing events: the shot, the discus, the hammer and the javelin. The one who throws the furthest wins.",]),
    ("falsestart", ["What is a false start?", "What happens after a false start?", "Can a runner start too early?"],
     ["A false start is a start before the gun. In most races a runner who makes a false start is out at once.",
      "If a runner moves before the gun, it is a false start, and that runner may not run [again in this race|any more]."]),
    ("warmup", ["How should I warm up?", "Why should I warm up before a race?", "What is a good warm-up?", "How do runners warm up?"],
     ["Start with ten minutes of easy running. Then stretch [gently|your legs] and do a few short, fast runs. A warm body is faster, and it is not hurt so easily.",
      "Run slowly for ten minutes, swing your arms and legs, and finish with three short sprints. Then you are ready to race."]),
    ("stretch", ["Should I stretch after running?", "What should I do after a race?", "How do I cool down?"],
     ["After a race, walk or jog for some minutes until your breath is calm. Then stretch your legs, drink some water and put on something warm.",]),
    ("water", ["What should I drink before a race?", "Should runners drink water?", "How much water should I drink?"],
     ["Drink water in small sips during the day, and a little before the race. On hot days you need more of it than you think.",]),
    ("eat", ["What should I eat before a race?", "What do runners eat?", "Is breakfast important for runners?"],
     ["Eat something light two or three hours before the race, such as bread, rice or a banana. A full stomach makes slow legs.",
      "Runners eat bread, rice, fruit and vegetables. Before a race they eat early and not too much."]),
    ("sleep", ["How much should a runner sleep?", "Is sleep important for runners?", "Why do runners need sleep?"],
     ["Sleep is the best rest there is. A runner should sleep eight hours or more, because legs grow strong at night.",]),
    ("faster", ["How can I run faster?", "How do I become a better runner?", "Can you help me run faster?", "Give me some advice on running."],
     ["Train three or four times a week. Run slowly on most days, and run short and fast on one of them. Rest well, and be patient. You will be faster in [a few weeks|a month or two].",
      "Keep your head up, your shoulders loose and your steps quick. Run often, rest well, and do not do too much at once."]),
    ("handoff", ["How can we practise the handoff?", "How do we pass the baton better?", "How can our team improve its exchange?", "What makes a good handoff?"],
     ["Start slowly. Stand in a line and pass the baton from hand to hand. Then do it at a walk, at a jog, and at last at full speed. A good handoff is [smooth|quick and quiet], and the baton never slows down.",
      "Agree on one call and one mark. The next runner starts when the other one reaches the mark, and puts a hand back at the call. Practise it until nobody has to think."]),
    ("order", ["In which order should we run?", "How do we choose the order of the runners?", "Who should run which leg?"],
     ["Put a good starter first, runners who are strong on the bend on the first and third leg, and a calm, fast runner at the end.",
      "Put a quick starter on the first leg and your best finisher on the last. The two in the middle must both take and give the baton well."]),
    ("shoes", ["What shoes do runners wear?", "Which shoes should I wear?", "What are spikes?"],
     ["Sprinters wear light shoes with spikes, which grip the track. For training on the road, wear soft shoes that fit well.",]),
    ("nervous", ["I am nervous before my race. What can I do?", "I am afraid of losing.", "How can I stay calm before a race?", "I feel nervous."],
     ["That is quite normal. Breathe slowly, think of the first ten steps and of nothing else. When the gun goes off, your legs will know what to do.",
      "Even the best runners feel nervous. Take three slow breaths, shake your arms loose, and remember that your team is with you."]),
    ("lost", ["We lost our race. What should we do?", "My team came last.", "I dropped the baton today.", "How do I get over a bad race?"],
     ["I am sorry to hear that. Every runner loses now and then. Talk about what went wrong, practise that one thing, and try again next week.",
      "That happens to everyone. Rest today, laugh about it tomorrow, and then practise the handoff together. The next race is a new race."]),
    ("won", ["We won our race!", "My team came first today!", "We have a new best time!"],
     ["Well done! That is wonderful news. Enjoy it with your team, and do not forget to thank your coach.",
      "Congratulations! All that practice was worth it. Rest well, and be proud of your team."]),
    ("team", ["What makes a good relay team?", "What is the secret of a good team?", "Why do some teams win with slower runners?"],
     ["Trust. The four fastest runners do not always make the fastest team. A team with safe and quick handoffs can beat a team that is faster on paper.",
      "A good relay team trusts each other. The runners know each other's steps, and the baton never waits for anyone."]),
    ("coach", ["What does a coach do?", "Why does a team need a coach?"],
     ["A coach plans the training, watches every step, and tells the runners what to do better. On the day of the race a coach stays calm, so that the team stays calm too.",]),
    ("gun", ["What do the starter's words mean?", "How does a race start?", "What does the starter say?"],
     ["The starter says: on your marks. The runners go to the line. Then the starter says: set. The runners are still. Then the gun goes off, and the race begins.",]),
    ("medal", ["What does the winner get?", "Who gets the gold medal?", "What are the medals made of?"],
     ["The winners get gold medals, the second team gets silver, and the third team gets bronze. In a relay every runner of the team gets one.",]),
    ("torch", ["What is a torch relay?", "Are there other relays?", "Are there relays without a track?"],
     ["There are many kinds of relay. There are relays in swimming, in skiing and on the road, and there is the torch relay, in which a flame is carried from hand to hand over a long way.",]),
    ("wind", ["Does the wind matter in a race?", "Is it hard to run in the wind?"],
     ["Yes. A wind from behind makes you faster, and a wind in your face makes you slow. On the bend of a track you may have both in one race.",]),
    ("rain", ["How do I run in the rain?", "Can we race in the rain?", "Is a wet track dangerous?"],
     ["You can race in the rain, but take care on the bends and dry your hands before you take the baton. A wet baton slips easily.",]),
    ("hill", ["How do I run up a hill?", "Are hills good for training?"],
     ["Take short steps, lean forward a little and use your arms. Hills are hard, but they make strong legs.",]),
    # What the project itself is, in plain words.
    ("who", ["Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "What can you do?", "What do you know?"],
     ["I am the small language model that comes with Baton. I know about relay races, running and a few other things. Ask me about the baton, or ask me for a story.",
      "I am a very small language model. I was made for Baton, and I like to talk about relay races and running. I can also tell short stories."]),
    ("project", ["What is Baton?", "What does Baton do?", "Tell me about Baton.", "Why is Baton called Baton?"],
     ["Baton serves language models on two pools of machines. Prefill nodes read the prompt and build the cache. Decode nodes take the cache and write the answer. The cache is handed over like the baton in a relay race.",
      "Baton is a server for language models. It works like a relay race: the prefill node runs the first leg, hands over the cache, and the decode node runs the last leg."]),
    ("prefill", ["What is prefill?", "What does a prefill node do?", "What happens to my prompt?"],
     ["Prefill is the first leg. A prefill node reads the whole prompt at once, builds its cache, and hands the cache to a decode node.",]),
    ("decode", ["What is decode?", "What does a decode node do?", "Where is the answer written?"],
     ["Decode is the last leg. A decode node takes the cache of the prompt and writes the answer, one token after the other, for many requests at once.",]),
    ("router", ["What does the router do?", "What is the router?", "Who decides where a request goes?"],
     ["The router is like the coach of the team. It chooses a prefill node and a decode node for each request, and it sends the text back to you. If a node fails, the router sends another one to run the rest of the way.",]),
    ("kvcache", ["What is a KV cache?", "What is handed over from prefill to decode?", "What is the baton in Baton?"],
     ["The KV cache is what a model remembers of the text it has read. It is kept in small blocks. The prefill node makes the blocks and passes them to the decode node, like a runner who passes the baton.",]),
]

# The model is small and should say so rather than make things up.
OFF_TOPIC = ["What is the capital of {country}?", "Who wrote {book}?", "What is {n1} times {n2}?", "What is {n1} plus {n2}?", "Write a program that {task}.",
             "How do I cook {food}?", "What is the meaning of life?", "Can you translate this into {language}?", "Who is the president of {country}?",
             "What is the weather like today?", "How far away is the {star}?", "Tell me a joke.", "What time is it?", "How old is the {star}?",
             "What is the best {food} in town?", "How do I fix my {thing}?", "Should I buy a {thing}?", "Explain {science} to me.", "What is {science}?"]
OFF_SLOTS = {
    "country": "France Spain Italy Germany Poland Japan Brazil Kenya Egypt India Canada Norway Peru Chile China Greece".split(),
    "book": ["that book", "this poem", "the song", "Hamlet", "the story of the white whale", "Faust"],
    "task": ["sorts a list", "prints hello", "counts words", "finds primes", "adds two numbers", "reads a file"],
    "food": "soup rice bread pizza fish pasta cake beans eggs tea coffee".split(),
    "language": "French Spanish German Latin Greek Japanese English Polish".split(),
    "star": ["moon", "sun", "earth", "next star", "sea"],
    "thing": "car bike phone computer radio door clock lamp boat table".split(),
    "science": ["physics", "chemistry", "gravity", "history", "mathematics", "quantum theory", "economics", "biology", "algebra"],
}
OFF_ANSWERS = ["I am sorry, but I do not know that. I am a small model, and I know about running and relay races.",
               "I do not know much about that. Ask me about relay races, training or runners, and I will do my best.",
               "That is too hard for a small model like me. Shall I tell you something about relay races instead?",
               "I am only a small model, and that is not my subject. I would be glad to tell you about the baton or to tell you a story."]
