#!/bin/sh
# One specification for Kaitai Struct finds a flag in Python and does not find it in JavaScript: bits are numbers with a
# sign there.
#
# Guess: an expression has one value in each language, or the compiler refuses it for one that cannot have it.
# Seen on 2026-11-30, kaitai-struct-compiler 0.11.0 and kaitai-struct 0.11.0 (npm), kaitaistruct 0.11 (Python 3.11), of
# four bytes f1 23 45 67 as `u4`: `(flags & 0x80000000) == 0x80000000` is true in Python and false in JavaScript,
# `flags & 0xff000000` is 4043309056 and -251658240, and a byte `<< 24` is 4043309056 and -251658240; `flags` itself and
# `flags >> 28` are the same in both. Nothing is said by the compiler, and all of them are numbers of 32 bits.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check kaitaistruct==0.11
npm install --silent --no-audit --no-fund kaitai-struct-compiler@0.11.0 kaitai-struct@0.11.0 js-yaml@4.1.0 >/dev/null
cat >word.ksy <<"SPECIFICATION"
meta:
  id: word
  endian: be
seq:
  - id: flags
    type: u4
instances:
  is_set:
    value: (flags & 0x80000000) == 0x80000000
  upper:
    value: flags & 0xff000000
  top:
    value: flags >> 28
  first:
    pos: 0
    type: u1
  shifted:
    value: first << 24
SPECIFICATION
cat >compile.js <<"PROGRAM"
const compiler = require("kaitai-struct-compiler");
const fs = require("fs");
const specification = require("js-yaml").load(fs.readFileSync("word.ksy", "utf8"));
(async () => {
  for (const language of ["javascript", "python"]) {
    const files = await compiler.compile(language, specification, null, false);
    for (const name in files) fs.writeFileSync(name, files[name]);
  }
})();
PROGRAM
node compile.js
cat >read.js <<"PROGRAM"
const Stream = require("kaitai-struct/KaitaiStream");
const module_ = require("./Word");
const word = new (module_.Word || module_)(new Stream(Buffer.from("f1234567", "hex")));
for (const name of ["flags", "isSet", "upper", "top", "shifted"])
  console.log(`JavaScript ${name.toLowerCase()} ${word[name]}`);
PROGRAM
cat >read.py <<"PROGRAM"
from word import Word

word = Word.from_bytes(bytes.fromhex("f1234567"))
for name in ("flags", "is_set", "upper", "top", "shifted"):
    print("Python", name.replace("_", ""), str(getattr(word, name)).lower())
PROGRAM
{ node read.js && venv/bin/python read.py; } | tee seen
cmp seen - <<"SEEN"
JavaScript flags 4045620583
JavaScript isset false
JavaScript upper -251658240
JavaScript top 15
JavaScript shifted -251658240
Python flags 4045620583
Python isset true
Python upper 4043309056
Python top 15
Python shifted 4043309056
SEEN
