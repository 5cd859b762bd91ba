# ruff: noqa: E501, RUF001
"""What the benchmark's pages say: the project's own words, in seven languages, a title and its paragraphs each."""

from collections.abc import Mapping

PROSE: Mapping[str, tuple[str, ...]] = {
    "eng": (
        "A Morning in the Roundhouse",
        "At five in the morning the yard is still dark, and only the lamp above the foreman's door throws a yellow "
        "circle on the wet bricks. He has been here since four. On the board behind him hang the brass numbers of "
        "all engines that belong to the house, and under each number there is a small card which tells who drove "
        "it last, how much water it took, and what the driver did not like about it.",
        "Number 31 leaks at the left cylinder. Number 44 was washed out yesterday and will be ready by noon. "
        "Number 52 is warm, because somebody asked for it late in the evening and then forgot to come. The foreman "
        "moves its card to the top of the board: a warm engine is worth more than a cold one, whatever its age, "
        "and the freight to the harbour leaves at 6:20.",
        "Visitors often ask why nobody simply keeps every fire burning. The answer is coal. A large engine that "
        "stands idle under steam burns as much in one night as a family needs for a winter month, and it must be "
        "watched all the time. So the house has rules. Whoever wants an engine writes down when, for how long, and "
        "for which train. Requests for the same engine are put together, so that it goes out once and not three "
        "times. Those who have waited longest come first, unless the doctor's train is called.",
        "By half past five the table turns for the first time. Two men lean against the long beam, the wheels "
        "groan, and Number 52 slides slowly into the light. Nobody says a word. The clerk makes a mark in his "
        "book, blows on the ink, and turns the page.",
    ),
    "deu": (
        "Ein Morgen im Lokschuppen",
        "Um fünf Uhr früh liegt der Hof noch im Dunkeln, nur die Lampe über der Tür des Meisters wirft einen gelben "
        "Kreis auf die nassen Ziegel. Seit vier ist er schon da. An der Tafel hinter ihm hängen die Nummern aller "
        "Lokomotiven, die zum Hause gehören, und unter jeder Nummer steckt eine kleine Karte. Auf ihr steht, wer "
        "zuletzt gefahren ist, wie viel Wasser nötig war und was dem Führer nicht gefallen hat.",
        "Die Nummer 31 ist am linken Zylinder undicht. Die Nummer 44 wurde gestern ausgewaschen und soll bis "
        "Mittag bereit sein. Die Nummer 52 ist warm, weil jemand sie spät am Abend bestellt und dann vergessen "
        "hat. Der Meister hängt ihre Karte ganz nach oben: Eine warme Maschine ist mehr wert als eine kalte, "
        "gleich wie alt sie ist, und der Güterzug zum Hafen fährt um 6:20 Uhr ab.",
        "Besucher fragen oft, weshalb man nicht einfach alle Feuer brennen lässt. Die Antwort heißt Kohle. Eine "
        "große Maschine, die untätig unter Dampf steht, verbraucht in einer Nacht so viel, wie eine Familie in "
        "einem Wintermonat benötigt, und sie muss die ganze Zeit bewacht werden. Darum gibt es Regeln. Wer eine "
        "Lokomotive haben möchte, schreibt auf, wann, für wie lange und für welchen Zug. Wünsche nach derselben "
        "Maschine werden zusammengelegt, damit sie nur einmal hinausmuss und nicht dreimal. Wer am längsten "
        "gewartet hat, kommt zuerst, es sei denn, der Zug des Arztes wird gerufen.",
        "Kurz vor halb sechs dreht sich die Scheibe zum ersten Mal. Zwei Männer stemmen sich gegen den langen "
        "Balken, die Räder ächzen, und die Nummer 52 gleitet langsam ins Licht. Niemand sagt ein Wort. Der "
        "Schreiber macht einen Strich in sein Buch, bläst über die Tinte und blättert um.",
    ),
    "fra": (
        "Un matin à la rotonde",
        "À cinq heures du matin, la cour est encore sombre et seule la lampe au-dessus de la porte du chef jette un "
        "rond jaune sur les briques mouillées. Il est là depuis quatre heures. Au tableau derrière lui pendent les "
        "numéros de toutes les machines de la maison et, sous chaque numéro, une petite fiche dit qui l'a conduite "
        "en dernier, combien d'eau elle a bu et ce qui n'a pas plu au mécanicien.",
        "La 31 perd de la vapeur au cylindre gauche. La 44 a été lavée hier et sera prête avant midi. La 52 est "
        "chaude, parce que quelqu'un l'a demandée tard dans la soirée, puis a oublié de venir. Le chef déplace sa "
        "fiche tout en haut du tableau : une machine chaude vaut mieux qu'une machine froide, quel que soit son "
        "âge, et le train de marchandises pour le port part à 6 h 20.",
        "Les visiteurs demandent souvent pourquoi on ne laisse pas brûler tous les feux. La réponse tient en un "
        "mot, le charbon. Une grosse machine qui attend sous pression en consomme autant en une nuit qu'une "
        "famille pendant un mois d'hiver, et il faut la surveiller sans cesse. La maison a donc des règles. Celui "
        "qui veut une machine écrit quand, pour combien de temps et pour quel train. Les demandes pour la même "
        "machine sont réunies, afin qu'elle sorte une fois et non trois. Ceux qui attendent depuis le plus "
        "longtemps passent les premiers, à moins que l'on n'appelle le train du médecin.",
        "Vers cinq heures et demie, le pont tourne pour la première fois. Deux hommes s'appuient contre la longue "
        "poutre, les roues grincent et la 52 glisse lentement vers la lumière. Personne ne dit rien. Le commis "
        "trace un trait dans son cahier, souffle sur l'encre et tourne la page.",
    ),
    "rus": (
        "Утро в паровозном депо",
        "В пять часов утра двор ещё тёмный, и только лампа над дверью мастера бросает жёлтый круг на мокрый кирпич. "
        "Он здесь с четырёх. На доске за его спиной висят номера всех паровозов, которые принадлежат депо, а под "
        "каждым номером лежит маленькая карточка. На ней написано, кто ездил последним, сколько воды ушло и что "
        "машинисту не понравилось.",
        "Номер 31 пропускает пар у левого цилиндра. Номер 44 вчера промыли, он будет готов к полудню. Номер 52 "
        "тёплый, потому что кто-то заказал его поздно вечером, а потом забыл прийти. Мастер переносит его карточку "
        "на самый верх доски: тёплая машина дороже холодной, сколько бы лет ей ни было, а товарный поезд в порт "
        "уходит в 6:20.",
        "Гости часто спрашивают, почему бы просто не держать все топки горячими. Ответ простой: уголь. Большой "
        "паровоз, который стоит без дела под парами, сжигает за одну ночь столько, сколько семье нужно на зимний "
        "месяц, и за ним надо всё время следить. Поэтому в депо есть правила. Кто хочет получить паровоз, тот "
        "пишет, когда, на какой срок и для какого поезда. Просьбы об одной и той же машине собирают вместе, чтобы "
        "она вышла один раз, а не три. Кто дольше всех ждал, тот идёт первым, если только не вызвали поезд врача.",
        "К половине шестого круг поворачивается впервые. Два человека упираются в длинный брус, колёса стонут, и "
        "номер 52 медленно выезжает на свет. Никто не говорит ни слова. Писарь ставит отметку в книге, дует на "
        "чернила и переворачивает страницу.",
    ),
    "chi_sim": (
        "机车库的早晨",
        "早上五点，院子里还是一片漆黑，只有工长门口的那盏灯在潮湿的砖地上投下一圈黄光。他四点钟就来了。身后的木板上挂着"
        "库里所有机车的号码，每个号码下面都有一张小卡片，上面写着谁最后一次开过它，用了多少水，司机对它有什么不满意的地方。",
        "三十一号的左汽缸漏气。四十四号昨天刚刚清洗过，中午以前可以准备好。五十二号还是热的，因为有人昨天晚上很晚才预订"
        "了它，后来却忘记来取。工长把它的卡片移到木板的最上面。不管一台机车有多旧，热的总比冷的更有用，而开往港口的货车六"
        "点二十分就要出发。",
        "参观的人常常问，为什么不让所有的炉火一直烧着。答案是煤。一台大机车停在那里不动，一个晚上烧掉的煤够一家人过一个"
        "冬天的月份，而且还要有人一直看着。所以库里定下了规矩。谁想要用机车，就要写清楚什么时候用，用多长时间，拉哪一趟"
        "列车。要同一台机车的申请放在一起，这样它只需要出去一次，而不是三次。等得最久的人排在前面，除非医生的列车来了。",
        "快到五点半的时候，转盘第一次转动起来。两个人用力推着长长的木杆，车轮发出低沉的声音，五十二号慢慢地滑进了光亮里"
        "。没有人说话。记录员在本子上画了一笔，吹干墨水，然后翻到下一页。",
    ),
    "hin": (
        "इंजन घर की सुबह",
        "सुबह के पाँच बजे आँगन में अब भी अँधेरा है और केवल मिस्त्री के दरवाज़े के ऊपर का दीपक गीली ईंटों पर पीली रोशनी डालता है। वह "
        "चार बजे से यहाँ है। उसके पीछे की तख्ती पर घर के सभी इंजनों के नंबर टँगे हैं और हर नंबर के नीचे एक छोटा कागज़ रखा है। उस पर "
        "लिखा है कि उसे पिछली बार किसने चलाया, कितना पानी लगा और चालक को क्या पसंद नहीं आया।",
        "पहले इंजन के बाएँ हिस्से से भाप निकलती है। दूसरा इंजन कल धोया गया था और दोपहर तक तैयार हो जाएगा। तीसरा इंजन गरम है, "
        "क्योंकि किसी ने उसे देर शाम को माँगा था और फिर आना भूल गया। मिस्त्री उसका कागज़ तख्ती में सबसे ऊपर रख देता है। गरम इंजन ठंडे "
        "इंजन से अच्छा होता है, चाहे वह कितना भी पुराना हो, और बंदरगाह की मालगाड़ी जल्दी ही निकलने वाली है।",
        "देखने वाले लोग अक्सर पूछते हैं कि सारी आग हमेशा जलती क्यों नहीं रहती। इसका उत्तर कोयला है। एक बड़ा इंजन जो खाली खड़ा रहता है, "
        "वह एक रात में उतना कोयला जला देता है जितना एक परिवार को सर्दी के एक महीने में चाहिए, और किसी को हर समय उसकी देखभाल "
        "करनी पड़ती है। इसलिए यहाँ कुछ नियम हैं। जिसे इंजन चाहिए वह लिखता है कि कब, कितनी देर के लिए और किस गाड़ी के लिए। एक ही "
        "इंजन की माँगें साथ रखी जाती हैं ताकि वह एक बार बाहर जाए, तीन बार नहीं। जिसने सबसे अधिक इंतज़ार किया है वह पहले आता है।",
        "थोड़ी देर बाद चक्का पहली बार घूमता है। दो आदमी लंबी लकड़ी को धकेलते हैं, पहिए कराहते हैं और गरम इंजन धीरे धीरे उजाले में आ जाता "
        "है। कोई कुछ नहीं बोलता। मुंशी अपनी किताब में निशान लगाता है, स्याही पर फूँक मारता है और पन्ना पलट देता है।",
    ),
    "ara": (
        "صباح في بيت القاطرات",
        "في الساعة الخامسة صباحا لا يزال الفناء مظلما، والمصباح الذي فوق باب رئيس العمال وحده يلقي دائرة صفراء على الحجارة "
        "المبتلة. لقد وصل إلى هنا منذ ساعة. على اللوح الذي خلفه أرقام جميع القاطرات التي يملكها البيت، وتحت كل رقم بطاقة صغيرة "
        "كتب عليها اسم من قادها آخر مرة، وكم شربت من الماء، وما الذي لم يعجب السائق فيها.",
        "القاطرة الأولى يتسرب منها البخار من جهة اليسار. أما الثانية فقد غسلت أمس وستكون جاهزة قبل الظهر. والثالثة دافئة لأن "
        "شخصا طلبها في وقت متأخر من المساء ثم نسي أن يأتي. ينقل رئيس العمال بطاقتها إلى أعلى اللوح، فالقاطرة الدافئة خير من "
        "الباردة مهما كان عمرها، وقطار البضائع المتجه إلى الميناء سيغادر بعد قليل.",
        "كثيرا ما يسأل الزوار لماذا لا تبقى كل النيران مشتعلة. والجواب هو الفحم. إن قاطرة كبيرة تقف بلا عمل تحرق في ليلة واحدة ما "
        "تحتاج إليه أسرة في شهر من شهور الشتاء، ولا بد من مراقبتها طوال الوقت. ولذلك وضعت في البيت قواعد واضحة. من أراد قاطرة "
        "كتب متى يريدها، وكم من الوقت، ولأي قطار. وتجمع الطلبات على القاطرة نفسها حتى تخرج مرة واحدة لا ثلاث مرات. ومن انتظر "
        "أطول من غيره يأتي دوره أولا، إلا إذا طلب قطار الطبيب.",
        "وبعد نصف ساعة تدور المنصة للمرة الأولى. يدفع رجلان العارضة الطويلة، وتئن العجلات، وتنزلق القاطرة الثالثة ببطء نحو "
        "الضوء. لا أحد يقول كلمة. يضع الكاتب علامة في دفتره، وينفخ على الحبر، ثم يقلب الصفحة.",
    ),
}
"""Tesseract's language name → the title and the paragraphs of the page."""
