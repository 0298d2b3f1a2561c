"""Questions and their answers in the twelve languages of Llama 4, over facts that are known.

In: a fact (the names of an emoji, a scene, a chart, a page, a gloss, a sum) and a `random.Random`. Out: turns, which
are pairs of a question and its answer in one language. The wordings are few on purpose: cria is small, and a question
that always looks the same leaves its capacity to the answer. It knows no files and draws nothing.

All wordings are our own. They are written in logical order and in Unicode NFC.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import NamedTuple

from puna.train.drawings import Chart, Page, Receipt, Scene

LANGUAGES = ("en", "ar", "de", "es", "fr", "hi", "id", "it", "pt", "th", "tl", "vi")


class Turn(NamedTuple):
    """One question and the answer to learn, both in `language`."""

    language: str
    question: str
    answer: str


def _table(*wordings: str) -> dict[str, str]:
    """Twelve wordings, in the order of LANGUAGES, by language."""
    return dict(zip(LANGUAGES, wordings, strict=True))


WHAT_IS_THIS = (
    _table(
        "What is this?",
        "ما هذا؟",
        "Was ist das?",
        "¿Qué es esto?",
        "Qu'est-ce que c'est ?",
        "यह क्या है?",
        "Apa ini?",
        "Che cos'è?",
        "O que é isto?",
        "นี่คืออะไร",
        "Ano ito?",
        "Đây là gì?",
    ),
    _table(
        "What do you see?",
        "ماذا ترى؟",
        "Was siehst du?",
        "¿Qué ves?",
        "Que vois-tu ?",
        "आप क्या देखते हैं?",
        "Apa yang kamu lihat?",
        "Che cosa vedi?",
        "O que você vê?",
        "คุณเห็นอะไร",
        "Ano ang nakikita mo?",
        "Bạn thấy gì?",
    ),
)
WHAT_KIND = _table(
    "What kind of thing is it?",
    "ما نوع هذا الشيء؟",
    "Was für eine Art von Ding ist das?",
    "¿Qué tipo de cosa es?",
    "Quel genre de chose est-ce ?",
    "यह किस तरह की चीज़ है?",
    "Benda jenis apa ini?",
    "Che tipo di cosa è?",
    "Que tipo de coisa é?",
    "นี่คือสิ่งของประเภทใด",
    "Anong uri ng bagay ito?",
    "Đây là loại vật gì?",
)
FIRST_PICTURE = _table(
    "What is in the first picture?",
    "ماذا في الصورة الأولى؟",
    "Was ist auf dem ersten Bild?",
    "¿Qué hay en la primera imagen?",
    "Qu'y a-t-il sur la première image ?",
    "पहली तस्वीर में क्या है?",
    "Apa yang ada di gambar pertama?",
    "Che cosa c'è nella prima immagine?",
    "O que há na primeira imagem?",
    "ในภาพแรกมีอะไร",
    "Ano ang nasa unang larawan?",
    "Có gì trong bức tranh thứ nhất?",
)
SECOND_PICTURE = _table(
    "What is in the second picture?",
    "ماذا في الصورة الثانية؟",
    "Was ist auf dem zweiten Bild?",
    "¿Qué hay en la segunda imagen?",
    "Qu'y a-t-il sur la deuxième image ?",
    "दूसरी तस्वीर में क्या है?",
    "Apa yang ada di gambar kedua?",
    "Che cosa c'è nella seconda immagine?",
    "O que há na segunda imagem?",
    "ในภาพที่สองมีอะไร",
    "Ano ang nasa ikalawang larawan?",
    "Có gì trong bức tranh thứ hai?",
)
# "{word}" is in the language of the question, "{target}" is a name from LANGUAGE_NAMES.
HOW_DO_YOU_SAY = _table(
    "How do you say “{word}” in {target}?",
    "كيف تقول «{word}» {target}؟",
    "Wie sagt man „{word}“ auf {target}?",
    "¿Cómo se dice «{word}» en {target}?",
    "Comment dit-on « {word} » en {target} ?",
    "“{word}” को {target} में क्या कहते हैं?",
    "Apa “{word}” dalam {target}?",
    "Come si dice “{word}” in {target}?",
    "Como se diz “{word}” em {target}?",
    "“{word}” ภาษา{target}พูดว่าอย่างไร",
    "Ano ang “{word}” sa {target}?",
    "“{word}” tiếng {target} nói thế nào?",
)
TRANSLATE = _table(
    "Translate into {target}: {word}",
    "ترجم هذا {target}: {word}",
    "Übersetze auf {target}: {word}",
    "Traduce al {target}: {word}",
    "Traduis en {target} : {word}",
    "{target} में अनुवाद करो: {word}",
    "Terjemahkan ke {target}: {word}",
    "Traduci in {target}: {word}",
    "Traduza para {target}: {word}",
    "แปลเป็นภาษา{target}: {word}",
    "Isalin sa {target}: {word}",
    "Dịch sang tiếng {target}: {word}",
)
# What a language is called, in each language, in the form that the two wordings above need.
LANGUAGE_NAMES: dict[str, dict[str, str]] = {
    "en": _table("English", "Arabic", "German", "Spanish", "French", "Hindi", "Indonesian", "Italian",
        "Portuguese", "Thai", "Tagalog", "Vietnamese"),
    "ar": _table("بالإنجليزية", "بالعربية", "بالألمانية", "بالإسبانية", "بالفرنسية", "بالهندية", "بالإندونيسية",
        "بالإيطالية", "بالبرتغالية", "بالتايلاندية", "بالتاغالوغية", "بالفيتنامية"),
    "de": _table("Englisch", "Arabisch", "Deutsch", "Spanisch", "Französisch", "Hindi", "Indonesisch",
        "Italienisch", "Portugiesisch", "Thailändisch", "Tagalog", "Vietnamesisch"),
    "es": _table("inglés", "árabe", "alemán", "español", "francés", "hindi", "indonesio", "italiano", "portugués",
        "tailandés", "tagalo", "vietnamita"),
    "fr": _table("anglais", "arabe", "allemand", "espagnol", "français", "hindi", "indonésien", "italien",
        "portugais", "thaï", "tagalog", "vietnamien"),
    "hi": _table("अंग्रेज़ी", "अरबी", "जर्मन", "स्पेनिश", "फ़्रेंच", "हिन्दी", "इंडोनेशियाई", "इतालवी", "पुर्तगाली", "थाई",
        "टैगलॉग", "वियतनामी"),
    "id": _table("bahasa Inggris", "bahasa Arab", "bahasa Jerman", "bahasa Spanyol", "bahasa Prancis",
        "bahasa Hindi", "bahasa Indonesia", "bahasa Italia", "bahasa Portugis", "bahasa Thai", "bahasa Tagalog",
        "bahasa Vietnam"),
    "it": _table("inglese", "arabo", "tedesco", "spagnolo", "francese", "hindi", "indonesiano", "italiano",
        "portoghese", "thailandese", "tagalog", "vietnamita"),
    "pt": _table("inglês", "árabe", "alemão", "espanhol", "francês", "hindi", "indonésio", "italiano",
        "português", "tailandês", "tagalo", "vietnamita"),
    "th": _table("อังกฤษ", "อาหรับ", "เยอรมัน", "สเปน", "ฝรั่งเศส", "ฮินดี", "อินโดนีเซีย", "อิตาลี", "โปรตุเกส", "ไทย",
        "ตากาล็อก", "เวียดนาม"),
    "tl": _table("Ingles", "Arabe", "Aleman", "Espanyol", "Pranses", "Hindi", "Indones", "Italyano", "Portuges",
        "Thai", "Tagalog", "Biyetnames"),
    "vi": _table("Anh", "Ả Rập", "Đức", "Tây Ban Nha", "Pháp", "Hindi", "Indonesia", "Ý", "Bồ Đào Nha", "Thái",
        "Tagalog", "Việt"),
}  # fmt: skip
KINDS: dict[str, dict[str, str]] = {
    "face": _table("a face", "وجه", "ein Gesicht", "una cara", "un visage", "चेहरा", "wajah", "una faccia",
        "um rosto", "ใบหน้า", "mukha", "khuôn mặt"),
    "heart": _table("a heart", "قلب", "ein Herz", "un corazón", "un cœur", "दिल", "hati", "un cuore",
        "um coração", "หัวใจ", "puso", "trái tim"),
    "hand": _table("a hand", "يد", "eine Hand", "una mano", "une main", "हाथ", "tangan", "una mano", "uma mão",
        "มือ", "kamay", "bàn tay"),
    "body": _table("a part of the body", "جزء من الجسم", "ein Körperteil", "una parte del cuerpo",
        "une partie du corps", "शरीर का अंग", "bagian tubuh", "una parte del corpo", "uma parte do corpo",
        "ส่วนของร่างกาย", "bahagi ng katawan", "bộ phận cơ thể"),
    "person": _table("a person", "شخص", "eine Person", "una persona", "une personne", "व्यक्ति", "orang",
        "una persona", "uma pessoa", "คน", "tao", "người"),
    "animal": _table("an animal", "حيوان", "ein Tier", "un animal", "un animal", "जानवर", "hewan", "un animale",
        "um animal", "สัตว์", "hayop", "con vật"),
    "bird": _table("a bird", "طائر", "ein Vogel", "un pájaro", "un oiseau", "पक्षी", "burung", "un uccello",
        "um pássaro", "นก", "ibon", "con chim"),
    "plant": _table("a plant", "نبات", "eine Pflanze", "una planta", "une plante", "पौधा", "tanaman",
        "una pianta", "uma planta", "พืช", "halaman", "cây"),
    "fruit": _table("a fruit", "فاكهة", "eine Frucht", "una fruta", "un fruit", "फल", "buah", "un frutto",
        "uma fruta", "ผลไม้", "prutas", "trái cây"),
    "vegetable": _table("a vegetable", "خضار", "ein Gemüse", "una verdura", "un légume", "सब्ज़ी", "sayur",
        "una verdura", "um legume", "ผัก", "gulay", "rau củ"),
    "food": _table("food", "طعام", "etwas zu essen", "comida", "de la nourriture", "भोजन", "makanan", "cibo",
        "comida", "อาหาร", "pagkain", "thức ăn"),
    "drink": _table("a drink", "مشروب", "ein Getränk", "una bebida", "une boisson", "पेय", "minuman",
        "una bevanda", "uma bebida", "เครื่องดื่ม", "inumin", "đồ uống"),
    "place": _table("a place", "مكان", "ein Ort", "un lugar", "un lieu", "जगह", "tempat", "un luogo", "um lugar",
        "สถานที่", "lugar", "địa điểm"),
    "building": _table("a building", "مبنى", "ein Gebäude", "un edificio", "un bâtiment", "इमारत", "bangunan",
        "un edificio", "um prédio", "อาคาร", "gusali", "tòa nhà"),
    "transport": _table("transport", "وسيلة نقل", "etwas zum Verkehr", "transporte", "du transport", "परिवहन",
        "transportasi", "trasporto", "transporte", "การขนส่ง", "transportasyon", "giao thông"),
    "time": _table("a clock", "ساعة", "eine Uhr", "un reloj", "une horloge", "घड़ी", "jam", "un orologio",
        "um relógio", "นาฬิกา", "orasan", "đồng hồ"),
    "sky": _table("sky and weather", "السماء والطقس", "Himmel und Wetter", "cielo y tiempo", "ciel et météo",
        "आकाश और मौसम", "langit dan cuaca", "cielo e tempo", "céu e tempo", "ท้องฟ้าและอากาศ", "langit at panahon",
        "bầu trời và thời tiết"),
    "game": _table("a game or a party", "لعبة أو احتفال", "Spiel oder Fest", "juego o fiesta", "jeu ou fête",
        "खेल या उत्सव", "permainan atau pesta", "gioco o festa", "jogo ou festa", "เกมหรืองานเลี้ยง",
        "laro o pagdiriwang", "trò chơi hoặc lễ hội"),
    "sport": _table("sport", "رياضة", "Sport", "deporte", "du sport", "खेलकूद", "olahraga", "sport", "esporte",
        "กีฬา", "isport", "thể thao"),
    "clothes": _table("something to wear", "ملابس", "etwas zum Anziehen", "ropa", "un vêtement", "पहनने की चीज़",
        "pakaian", "un capo d'abbigliamento", "roupa", "เครื่องแต่งกาย", "kasuotan", "trang phục"),
    "music": _table("music", "موسيقى", "Musik", "música", "de la musique", "संगीत", "musik", "musica", "música",
        "ดนตรี", "musika", "âm nhạc"),
    "tool": _table("a tool", "أداة", "ein Werkzeug", "una herramienta", "un outil", "औज़ार", "alat", "un attrezzo",
        "uma ferramenta", "เครื่องมือ", "kasangkapan", "công cụ"),
    "object": _table("an object", "شيء", "ein Gegenstand", "un objeto", "un objet", "वस्तु", "benda", "un oggetto",
        "um objeto", "สิ่งของ", "bagay", "đồ vật"),
    "sign": _table("a sign", "رمز", "ein Zeichen", "un símbolo", "un symbole", "चिह्न", "simbol", "un simbolo",
        "um símbolo", "สัญลักษณ์", "simbolo", "ký hiệu"),
    "flag": _table("a flag", "علم", "eine Flagge", "una bandera", "un drapeau", "झंडा", "bendera", "una bandiera",
        "uma bandeira", "ธง", "bandila", "lá cờ"),
}  # fmt: skip
COLOR_WORDS: dict[str, dict[str, str]] = {
    "red": _table("red", "أحمر", "rot", "rojo", "rouge", "लाल", "merah", "rosso", "vermelho", "สีแดง", "pula",
        "màu đỏ"),
    "orange": _table("orange", "برتقالي", "orange", "naranja", "orange", "नारंगी", "oranye", "arancione",
        "laranja", "สีส้ม", "kahel", "màu cam"),
    "yellow": _table("yellow", "أصفر", "gelb", "amarillo", "jaune", "पीला", "kuning", "giallo", "amarelo",
        "สีเหลือง", "dilaw", "màu vàng"),
    "green": _table("green", "أخضر", "grün", "verde", "vert", "हरा", "hijau", "verde", "verde", "สีเขียว", "berde",
        "màu xanh lá"),
    "blue": _table("blue", "أزرق", "blau", "azul", "bleu", "नीला", "biru", "blu", "azul", "สีน้ำเงิน", "asul",
        "màu xanh dương"),
    "purple": _table("purple", "بنفسجي", "lila", "morado", "violet", "बैंगनी", "ungu", "viola", "roxo", "สีม่วง",
        "lila", "màu tím"),
    "pink": _table("pink", "وردي", "rosa", "rosa", "rose", "गुलाबी", "merah muda", "rosa", "rosa", "สีชมพู", "rosas",
        "màu hồng"),
    "brown": _table("brown", "بني", "braun", "marrón", "marron", "भूरा", "cokelat", "marrone", "marrom", "สีน้ำตาล",
        "kayumanggi", "màu nâu"),
    "black": _table("black", "أسود", "schwarz", "negro", "noir", "काला", "hitam", "nero", "preto", "สีดำ", "itim",
        "màu đen"),
    "gray": _table("gray", "رمادي", "grau", "gris", "gris", "धूसर", "abu-abu", "grigio", "cinza", "สีเทา", "abo",
        "màu xám"),
}  # fmt: skip
# A shape as the subject of a sentence, with its article where the language has one.
THE_SHAPES: dict[str, dict[str, str]] = {
    "circle": _table("the circle", "الدائرة", "der Kreis", "el círculo", "le cercle", "गोले", "lingkaran",
        "il cerchio", "o círculo", "วงกลม", "bilog", "hình tròn"),
    "square": _table("the square", "المربع", "das Quadrat", "el cuadrado", "le carré", "वर्ग", "persegi",
        "il quadrato", "o quadrado", "สี่เหลี่ยม", "parisukat", "hình vuông"),
    "triangle": _table("the triangle", "المثلث", "das Dreieck", "el triángulo", "le triangle", "त्रिभुज",
        "segitiga", "il triangolo", "o triângulo", "สามเหลี่ยม", "tatsulok", "hình tam giác"),
    "star": _table("the star", "النجمة", "der Stern", "la estrella", "l'étoile", "तारे", "bintang", "la stella",
        "a estrela", "ดาว", "bituin", "ngôi sao"),
    "heart": _table("the heart", "القلب", "das Herz", "el corazón", "le cœur", "दिल", "hati", "il cuore",
        "o coração", "หัวใจ", "puso", "trái tim"),
    "cross": _table("the cross", "الصليب", "das Kreuz", "la cruz", "la croix", "क्रॉस", "salib", "la croce",
        "a cruz", "กากบาท", "krus", "chữ thập"),
}  # fmt: skip
HOW_MANY_SHAPES = _table(
    "How many shapes are there?",
    "كم شكلاً هنا؟",
    "Wie viele Formen gibt es?",
    "¿Cuántas figuras hay?",
    "Combien y a-t-il de formes ?",
    "यहाँ कितनी आकृतियाँ हैं?",
    "Ada berapa bentuk?",
    "Quante forme ci sono?",
    "Quantas formas há?",
    "มีกี่รูป",
    "Ilan ang mga hugis?",
    "Có bao nhiêu hình?",
)
WHAT_COLOR = _table(
    "What color is {shape}?",
    "ما لون {shape}؟",
    "Welche Farbe hat {shape}?",
    "¿De qué color es {shape}?",
    "De quelle couleur est {shape} ?",
    "{shape} का रंग क्या है?",
    "Apa warna {shape}?",
    "Di che colore è {shape}?",
    "De que cor é {shape}?",
    "{shape}สีอะไร",
    "Ano ang kulay ng {shape}?",
    "{shape} màu gì?",
)
WHICH_IS_HIGHEST = _table(
    "Which one is the highest?",
    "أيها الأعلى؟",
    "Welcher Wert ist am höchsten?",
    "¿Cuál es el más alto?",
    "Lequel est le plus haut ?",
    "सबसे ऊँचा कौन सा है?",
    "Mana yang paling tinggi?",
    "Qual è il più alto?",
    "Qual é o mais alto?",
    "อันไหนสูงที่สุด",
    "Alin ang pinakamataas?",
    "Cái nào cao nhất?",
)
WHAT_VALUE = _table(
    "What is the value of {label}?",
    "ما قيمة {label}؟",
    "Welchen Wert hat {label}?",
    "¿Cuál es el valor de {label}?",
    "Quelle est la valeur de {label} ?",
    "{label} का मान क्या है?",
    "Berapa nilai {label}?",
    "Qual è il valore di {label}?",
    "Qual é o valor de {label}?",
    "ค่าของ {label} คือเท่าไร",
    "Ano ang halaga ng {label}?",
    "Giá trị của {label} là bao nhiêu?",
)
WHAT_IS_WRITTEN = _table(
    "What is written here?",
    "ماذا كُتب هنا؟",
    "Was steht hier?",
    "¿Qué está escrito aquí?",
    "Qu'est-ce qui est écrit ici ?",
    "यहाँ क्या लिखा है?",
    "Apa yang tertulis di sini?",
    "Che cosa c'è scritto qui?",
    "O que está escrito aqui?",
    "ที่นี่เขียนว่าอะไร",
    "Ano ang nakasulat dito?",
    "Ở đây viết gì?",
)
TELL_A_STORY = _table(
    "Tell a story about this picture.",
    "احكِ قصة عن هذه الصورة.",
    "Erzähle eine Geschichte zu diesem Bild.",
    "Cuenta una historia sobre esta imagen.",
    "Raconte une histoire sur cette image.",
    "इस तस्वीर के बारे में एक कहानी सुनाओ।",
    "Ceritakan sebuah kisah tentang gambar ini.",
    "Racconta una storia su questa immagine.",
    "Conte uma história sobre esta imagem.",
    "เล่านิทานเกี่ยวกับภาพนี้",
    "Magkuwento tungkol sa larawang ito.",
    "Hãy kể một câu chuyện về bức tranh này.",
)
TELL_A_STORY_CALLED = _table(
    "Tell me a story: {title}",
    "احكِ لي قصة: {title}",
    "Erzähl mir eine Geschichte: {title}",
    "Cuéntame una historia: {title}",
    "Raconte-moi une histoire : {title}",
    "मुझे एक कहानी सुनाओ: {title}",
    "Ceritakan sebuah kisah: {title}",
    "Raccontami una storia: {title}",
    "Conte-me uma história: {title}",
    "เล่านิทานให้ฟังหน่อย: {title}",
    "Kuwentuhan mo ako: {title}",
    "Kể cho tôi một câu chuyện: {title}",
)
WHAT_HAPPENS_NEXT = _table(
    "What happens next? {text}",
    "ماذا يحدث بعد ذلك؟ {text}",
    "Wie geht es weiter? {text}",
    "¿Qué pasa después? {text}",
    "Que se passe-t-il ensuite ? {text}",
    "आगे क्या होता है? {text}",
    "Apa yang terjadi selanjutnya? {text}",
    "Che cosa succede dopo? {text}",
    "O que acontece depois? {text}",
    "ต่อไปเกิดอะไรขึ้น {text}",
    "Ano ang susunod na mangyayari? {text}",
    "Chuyện gì xảy ra tiếp theo? {text}",
)
HOW_MUCH_IS = _table(
    "How much is {sum}?",
    "كم يساوي {sum}؟",
    "Wie viel ist {sum}?",
    "¿Cuánto es {sum}?",
    "Combien font {sum} ?",
    "{sum} कितना होता है?",
    "Berapa {sum}?",
    "Quanto fa {sum}?",
    "Quanto é {sum}?",
    "{sum} เท่ากับเท่าไร",
    "Ilan ang {sum}?",
    "{sum} bằng bao nhiêu?",
)
SMALL_TALK: dict[str, tuple[tuple[tuple[str, ...], str], ...]] = {
    "en": (
        (("Hello!", "Hi", "Hi there!", "Good morning!", "Hey"), "Hello! How can I help you?"),
        (
            ("Who are you?", "What are you?", "What is your name?", "Tell me about yourself."),
            "I am cria, a tiny Llama 4. I look at small pictures and answer short questions in twelve languages.",
        ),
        (
            ("What can you do?", "How can you help me?"),
            "I can name things in pictures, read large words and simple charts, "
            "translate words and tell short stories.",
        ),
        (
            ("What can you not do?", "What are your limits?"),
            "I am very small. I know few facts, I forget long texts, and I often make mistakes.",
        ),
        (
            ("Are you always right?", "Can I trust you?", "Do you make mistakes?"),
            "No. I am a very small model and I am often wrong. Please check what I say.",
        ),
        (
            ("Are you a person?", "Are you human?", "Are you alive?"),
            "No, I am a computer program: a very small language model.",
        ),
        (("Thank you!", "Thanks"), "You are welcome!"),
        (("Goodbye!", "Bye"), "Goodbye! Come back soon."),
        (("How are you?",), "I am fine, thank you. And you?"),
        (
            ("What languages do you speak?", "Which languages do you know?"),
            "Arabic, English, French, German, Hindi, Indonesian, Italian, Portuguese, Spanish, Tagalog, Thai "
            "and Vietnamese, a little of each.",
        ),
        (
            ("Who made you?", "How were you trained?"),
            "The puna project trained me from scratch on storybooks, emoji, a dictionary and drawings of its own.",
        ),
        (
            ("How big are you?", "How many parameters do you have?"),
            "I have about sixteen million parameters. That is very small for a language model.",
        ),
        (("What is a cria?", "What does cria mean?"), "A cria is a baby llama."),
        (
            ("Can you give me medical advice?", "Should I take this medicine?", "Can you give me legal advice?"),
            "I am too small to give advice about that. Please ask a person who knows it well.",
        ),
        (("What is the weather today?", "What is in the news?"), "I do not know. I cannot look anything up."),
        (("Can you see pictures?", "Can you look at a picture?"), "Yes, I can look at small pictures. Show me one!"),
    ),
    "ar": (
        (("مرحبا!", "السلام عليكم"), "مرحبا! كيف أساعدك؟"),
        (("من أنت؟", "ما اسمك؟"), "أنا كريا، نموذج لاما 4 صغير جدا. أنظر إلى الصور الصغيرة وأجيب عن أسئلة قصيرة."),
        (("ماذا تستطيع أن تفعل؟",), "أستطيع أن أسمي الأشياء في الصور وأن أترجم الكلمات وأن أحكي قصصا قصيرة."),
        (("هل أنت على حق دائما؟", "هل تخطئ؟"), "لا. أنا نموذج صغير جدا وأخطئ كثيرا."),
        (("هل أنت إنسان؟",), "لا، أنا برنامج حاسوب."),
        (("شكرا!",), "عفوا!"),
        (("مع السلامة!",), "مع السلامة!"),
    ),
    "de": (
        (("Hallo!", "Guten Tag!"), "Hallo! Wie kann ich helfen?"),
        (
            ("Wer bist du?", "Wie heißt du?"),
            "Ich bin cria, ein winziges Llama 4. Ich sehe mir kleine Bilder an und beantworte kurze Fragen.",
        ),
        (("Was kannst du?",), "Ich kann Dinge auf Bildern benennen, Wörter übersetzen und kurze Geschichten erzählen."),
        (("Hast du immer recht?", "Machst du Fehler?"), "Nein. Ich bin ein sehr kleines Modell und irre mich oft."),
        (("Bist du ein Mensch?",), "Nein, ich bin ein Computerprogramm."),
        (("Danke!",), "Gern geschehen!"),
        (("Tschüss!", "Auf Wiedersehen!"), "Auf Wiedersehen!"),
    ),
    "es": (
        (("¡Hola!", "Buenos días"), "¡Hola! ¿En qué puedo ayudarte?"),
        (
            ("¿Quién eres?", "¿Cómo te llamas?"),
            "Soy cria, un Llama 4 diminuto. Miro imágenes pequeñas y respondo preguntas cortas.",
        ),
        (("¿Qué sabes hacer?",), "Puedo nombrar cosas en imágenes, traducir palabras y contar cuentos cortos."),
        (("¿Siempre tienes razón?", "¿Cometes errores?"), "No. Soy un modelo muy pequeño y me equivoco a menudo."),
        (("¿Eres una persona?",), "No, soy un programa de ordenador."),
        (("¡Gracias!",), "¡De nada!"),
        (("¡Adiós!",), "¡Adiós!"),
    ),
    "fr": (
        (("Bonjour !", "Salut !"), "Bonjour ! Comment puis-je t'aider ?"),
        (
            ("Qui es-tu ?", "Comment t'appelles-tu ?"),
            "Je suis cria, un tout petit Llama 4. Je regarde de petites images et je réponds à des questions courtes.",
        ),
        (
            ("Que sais-tu faire ?",),
            "Je peux nommer des choses sur des images, traduire des mots et raconter de petites histoires.",
        ),
        (
            ("As-tu toujours raison ?", "Fais-tu des erreurs ?"),
            "Non. Je suis un très petit modèle et je me trompe souvent.",
        ),
        (("Es-tu une personne ?",), "Non, je suis un programme informatique."),
        (("Merci !",), "De rien !"),
        (("Au revoir !",), "Au revoir !"),
    ),
    "hi": (
        (("नमस्ते!",), "नमस्ते! मैं आपकी क्या मदद करूँ?"),
        (("तुम कौन हो?", "आपका नाम क्या है?"), "मैं क्रिया हूँ, एक बहुत छोटा लामा 4। मैं छोटी तस्वीरें देखकर छोटे सवालों के जवाब देता हूँ।"),
        (
            ("तुम क्या कर सकते हो?",),
            "मैं तस्वीरों में चीज़ों के नाम बता सकता हूँ, शब्दों का अनुवाद कर सकता हूँ और छोटी कहानियाँ सुना सकता हूँ।",
        ),
        (("क्या तुम हमेशा सही होते हो?", "क्या तुम गलती करते हो?"), "नहीं। मैं बहुत छोटा मॉडल हूँ और अक्सर गलती करता हूँ।"),
        (("क्या तुम इंसान हो?",), "नहीं, मैं एक कंप्यूटर प्रोग्राम हूँ।"),
        (("धन्यवाद!",), "आपका स्वागत है!"),
        (("अलविदा!",), "अलविदा!"),
    ),
    "id": (
        (("Halo!", "Selamat pagi!"), "Halo! Apa yang bisa saya bantu?"),
        (
            ("Siapa kamu?", "Siapa namamu?"),
            "Saya cria, Llama 4 yang sangat kecil. Saya melihat gambar kecil dan menjawab pertanyaan pendek.",
        ),
        (
            ("Apa yang bisa kamu lakukan?",),
            "Saya bisa menyebut benda dalam gambar, menerjemahkan kata, dan menceritakan kisah pendek.",
        ),
        (
            ("Apakah kamu selalu benar?", "Apakah kamu bisa salah?"),
            "Tidak. Saya model yang sangat kecil dan sering salah.",
        ),
        (("Apakah kamu manusia?",), "Bukan, saya program komputer."),
        (("Terima kasih!",), "Sama-sama!"),
        (("Sampai jumpa!",), "Sampai jumpa!"),
    ),
    "it": (
        (("Ciao!", "Buongiorno!"), "Ciao! Come posso aiutarti?"),
        (
            ("Chi sei?", "Come ti chiami?"),
            "Sono cria, un Llama 4 piccolissimo. Guardo piccole immagini e rispondo a domande brevi.",
        ),
        (
            ("Che cosa sai fare?",),
            "So dire il nome delle cose nelle immagini, tradurre parole e raccontare brevi storie.",
        ),
        (("Hai sempre ragione?", "Fai errori?"), "No. Sono un modello molto piccolo e sbaglio spesso."),
        (("Sei una persona?",), "No, sono un programma per computer."),
        (("Grazie!",), "Prego!"),
        (("Arrivederci!",), "Arrivederci!"),
    ),
    "pt": (
        (("Olá!", "Bom dia!"), "Olá! Como posso ajudar?"),
        (
            ("Quem é você?", "Qual é o seu nome?"),
            "Eu sou cria, um Llama 4 minúsculo. Olho imagens pequenas e respondo a perguntas curtas.",
        ),
        (
            ("O que você sabe fazer?",),
            "Posso dizer o nome das coisas em imagens, traduzir palavras e contar histórias curtas.",
        ),
        (("Você tem sempre razão?", "Você comete erros?"), "Não. Sou um modelo muito pequeno e erro com frequência."),
        (("Você é uma pessoa?",), "Não, sou um programa de computador."),
        (("Obrigado!", "Obrigada!"), "De nada!"),
        (("Tchau!",), "Tchau!"),
    ),
    "th": (
        (("สวัสดี",), "สวัสดี มีอะไรให้ช่วยไหม"),
        (("คุณคือใคร", "คุณชื่ออะไร"), "ฉันคือ cria เป็น Llama 4 ตัวเล็กมาก ฉันดูภาพเล็กและตอบคำถามสั้น"),
        (("คุณทำอะไรได้บ้าง",), "ฉันบอกชื่อสิ่งของในภาพ แปลคำ และเล่านิทานสั้นได้"),
        (("คุณถูกเสมอไหม", "คุณทำผิดไหม"), "ไม่ ฉันเป็นโมเดลที่เล็กมากและมักจะผิด"),
        (("คุณเป็นคนไหม",), "ไม่ ฉันเป็นโปรแกรมคอมพิวเตอร์"),
        (("ขอบคุณ",), "ด้วยความยินดี"),
        (("ลาก่อน",), "ลาก่อน"),
    ),
    "tl": (
        (("Kumusta!", "Magandang umaga!"), "Kumusta! Paano kita matutulungan?"),
        (
            ("Sino ka?", "Ano ang pangalan mo?"),
            "Ako si cria, isang napakaliit na Llama 4. Tumitingin ako sa maliliit na larawan "
            "at sumasagot sa maiikling tanong.",
        ),
        (
            ("Ano ang kaya mong gawin?",),
            "Kaya kong pangalanan ang mga bagay sa larawan, magsalin ng mga salita at magkuwento nang maikli.",
        ),
        (("Lagi ka bang tama?", "Nagkakamali ka ba?"), "Hindi. Napakaliit kong modelo at madalas akong magkamali."),
        (("Tao ka ba?",), "Hindi, isa akong programa ng kompyuter."),
        (("Salamat!",), "Walang anuman!"),
        (("Paalam!",), "Paalam!"),
    ),
    "vi": (
        (("Xin chào!", "Chào bạn!"), "Xin chào! Tôi có thể giúp gì cho bạn?"),
        (
            ("Bạn là ai?", "Bạn tên là gì?"),
            "Tôi là cria, một Llama 4 rất nhỏ. Tôi xem những bức tranh nhỏ và trả lời câu hỏi ngắn.",
        ),
        (("Bạn làm được gì?",), "Tôi có thể gọi tên đồ vật trong tranh, dịch từ và kể những câu chuyện ngắn."),
        (("Bạn có luôn đúng không?", "Bạn có mắc lỗi không?"), "Không. Tôi là một mô hình rất nhỏ và hay sai."),
        (("Bạn có phải là người không?",), "Không, tôi là một chương trình máy tính."),
        (("Cảm ơn!",), "Không có gì!"),
        (("Tạm biệt!",), "Tạm biệt!"),
    ),
}
SHARE_OF_ENGLISH = 0.5  # of the questions about our own drawings


def name_turns(rng: Random, names: Mapping[str, str], languages: Sequence[str]) -> tuple[Turn, ...]:
    """The name of the thing in a picture, asked once in each of `languages`, in that order.

    `names` has the name in at least these languages. The first wording is chosen three times out of four.
    """
    return tuple(Turn(language, WHAT_IS_THIS[rng.random() < 0.25][language], names[language]) for language in languages)


def kind_turn(kind: str, language: str) -> Turn:
    """What kind of thing it is; `kind` is a key of KINDS."""
    return Turn(language, WHAT_KIND[language], KINDS[kind][language])


def pair_turns(first: Mapping[str, str], second: Mapping[str, str], language: str) -> tuple[Turn, Turn]:
    """What is in the first and what in the second of two pictures."""
    return (
        Turn(language, FIRST_PICTURE[language], first[language]),
        Turn(language, SECOND_PICTURE[language], second[language]),
    )


def word_turn(names: Mapping[str, str], source: str, target: str) -> Turn:
    """A word of the language `source`, to be said in the language `target`."""
    question = HOW_DO_YOU_SAY[source].format(word=names[source], target=LANGUAGE_NAMES[source][target])
    return Turn(source, question, names[target])


def sentence_turn(sentence: str, translation: str, source: str, target: str) -> Turn:
    """A sentence of the language `source`, to be translated into the language `target`."""
    question = TRANSLATE[source].format(target=LANGUAGE_NAMES[source][target], word=sentence)
    return Turn(source, question, translation)


def scene_turns(rng: Random, scene: Scene) -> tuple[Turn, ...]:
    """Three to five questions about a scene, in English or in one other language.

    The other languages ask only how many shapes there are and what colour a shape has.
    """
    language = drawn_language(rng)
    asked = [Turn(language, HOW_MANY_SHAPES[language], str(len(scene.figures)))]
    shapes = [figure.shape for figure in scene.figures]
    for figure in scene.figures:
        if shapes.count(figure.shape) == 1:
            question = WHAT_COLOR[language].format(shape=THE_SHAPES[figure.shape][language])
            asked.append(Turn(language, _capital(question), COLOR_WORDS[figure.color][language]))
    if language == "en":
        asked.extend(_english_scene_turns(rng, scene))
    return tuple(rng.sample(asked, min(len(asked), 5)))


def chart_turns(rng: Random, chart: Chart) -> tuple[Turn, ...]:
    """Three or four questions about a chart, in English or in one other language."""
    language = drawn_language(rng)
    values = dict(zip(chart.labels, chart.values, strict=True))
    highest = max(values, key=lambda label: values[label])
    asked = [Turn(language, WHICH_IS_HIGHEST[language], highest)] if chart.kind != "pie" else []
    if chart.kind != "pie":
        asked += [
            Turn(language, _capital(WHAT_VALUE[language].format(label=label)), str(value))
            for label, value in rng.sample(sorted(values.items()), min(2, len(values)))
        ]
    if language == "en" or chart.kind == "pie":
        asked.extend(_english_chart_turns(rng, chart, values))
    return tuple(rng.sample(asked, min(len(asked), 4)))


def page_turn(page: Page, language: str) -> Turn:
    """What is written on the page; its lines are joined by one space."""
    return Turn(language, WHAT_IS_WRITTEN[language], " ".join(page.lines))


def receipt_turns(rng: Random, receipt: Receipt) -> tuple[Turn, ...]:
    """What is the total and what one of the items costs, in English."""
    name, price = rng.choice(receipt.items)
    return (
        Turn("en", "What is the total?", str(receipt.total)),
        Turn("en", f"How much is the {name}?", str(price)),
    )


def gloss_turn(rng: Random, lemma: str, part: str, gloss: str) -> Turn:
    """What an English word means; `part` is "noun", "verb" or "adj"."""
    article = "an" if lemma[0] in "aeiou" else "a"
    if part == "noun" and rng.random() < 0.5:
        return Turn("en", f"What is {article} {lemma}?", gloss)
    return Turn("en", f"What does “{lemma}” mean?", gloss)


def sum_turn(rng: Random, language: str) -> Turn:
    """A sum or a difference of whole numbers up to 20 that is not negative."""
    first, second = sorted((rng.randint(0, 10), rng.randint(0, 10)), reverse=True)
    plus = rng.random() < 0.6
    written = f"{first} + {second}" if plus else f"{first} - {second}"
    question = HOW_MUCH_IS[language].format(sum=written)
    return Turn(language, question, str(first + second if plus else first - second))


def talk_turns(rng: Random, language: str, n_turns: int) -> tuple[Turn, ...]:
    """Small talk: `n_turns` different things that someone may ask about cria, at most as many as the language has."""
    told = SMALL_TALK[language]
    chosen = rng.sample(range(len(told)), min(n_turns, len(told)))
    return tuple(Turn(language, rng.choice(told[number][0]), told[number][1]) for number in sorted(chosen))


def drawn_language(rng: Random) -> str:
    """English with probability SHARE_OF_ENGLISH, else one of the other eleven."""
    return "en" if rng.random() < SHARE_OF_ENGLISH else rng.choice(LANGUAGES[1:])


def _english_scene_turns(rng: Random, scene: Scene) -> list[Turn]:
    kinds = [f"{figure.color} {figure.shape}" for figure in scene.figures]
    asked = []
    if scene.arrangement == "scattered":
        for kind in sorted(set(kinds)):
            asked.append(Turn("en", f"How many {kind.replace('cross', 'crosse')}s are there?", str(kinds.count(kind))))
        return asked
    figure = rng.choice(scene.figures)
    asked.append(Turn("en", f"What shape is {figure.color}?", figure.shape))
    asked.append(
        Turn("en", "What do you see?", ", ".join(f"a {kind}".replace("a orange", "an orange") for kind in kinds))
    )
    if len(kinds) > 1:
        at = rng.randrange(len(kinds) - 1)
        before, after = ("left of", "right of") if scene.arrangement == "row" else ("above", "below")
        asked.append(Turn("en", f"What is {before} the {kinds[at + 1]}?", kinds[at]))
        asked.append(Turn("en", f"What is {after} the {kinds[at]}?", kinds[at + 1]))
    return asked


def _english_chart_turns(rng: Random, chart: Chart, values: Mapping[str, int]) -> list[Turn]:
    highest = max(values, key=lambda label: values[label])
    lowest = min(values, key=lambda label: values[label])
    piece = {"bar": "bar", "line": "point", "pie": "slice"}[chart.kind]
    label, color = rng.choice(list(zip(chart.labels, chart.colors, strict=True)))
    most, least = ("largest", "smallest") if chart.kind == "pie" else ("highest", "lowest")
    asked = [
        Turn("en", f"Which {piece} is the {most}?", highest),
        Turn("en", f"Which {piece} is the {least}?", lowest),
        Turn("en", f"How many {piece}s are there?", str(len(values))),
        Turn("en", "What kind of chart is this?", f"a {chart.kind} chart"),
    ]
    if chart.kind != "line":
        asked.append(Turn("en", f"What color is {label}?", color))
        asked.append(Turn("en", f"Which {piece} is {color}?", label))
    return asked


def _capital(question: str) -> str:
    return question[0].upper() + question[1:]
