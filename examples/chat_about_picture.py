"""Asks about a picture, then asks again in other languages. Use: python examples/chat_about_picture.py [PICTURE]"""

import sys
from pathlib import Path

import puna
from puna.guard.guarded import protect

QUESTIONS = ("What is this?", "¿Qué es esto?", "Was ist das?", "यह क्या है?")

picture = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "pictures" / "cat.png"
llama = protect(puna.load("cria"))  # the policy "chatbot"; protect(..., "off") takes the protections away

messages: list[object] = []
for question in QUESTIONS:
    text = {"type": "text", "text": question}
    # Only the first turn shows the picture: later turns remember it.
    content = [text] if messages else [{"type": "image", "image": picture}, text]
    messages.append({"role": "user", "content": content})
    reply = llama.chat(messages, temperature=0, max_new_tokens=30)
    messages.append(reply)
    print(f"{question}  {reply.text}")
