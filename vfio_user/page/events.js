"use strict";
// What a page has embedded: columns of numbers, an event each, and blocks of words, taken apart where somebody looks.
async function embedded(at, about, arrived) { // `arrived` is called when words that were asked for are at hand
  const KEPT = 64; // blocks
  function bytesOf(base64) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
    const text = atob(base64), bytes = new Uint8Array(text.length);
    for (let index = 0; index < text.length; index++) bytes[index] = text.charCodeAt(index);
    return bytes;
  }
  const inflated = base64 =>
    new Response(new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("deflate")));
  async function column(name, Kind) {
    const element = at("column-" + name), found = new Kind(await inflated(element.textContent).arrayBuffer());
    element.remove();
    return found;
  }
  const [whenLow, whenHigh, lastedLow, lastedHigh, rowOf, saidOf, kindOf, recordOf, answerOf] = await Promise.all([
    column("when", Uint32Array), column("when_high", Uint32Array), column("lasted", Uint32Array),
    column("lasted_high", Uint32Array), column("row", Uint16Array), column("said", Uint32Array),
    column("kind", Uint8Array), column("record", Uint32Array), column("answer", Uint32Array)]);
  const count = about.count, when = new Float64Array(count); // seconds since the beginning
  for (let index = 0, now = 0; index < count; index++) {
    now += whenLow[index] + whenHigh[index] * 4294967296;
    when[index] = now / 1e9;
  }
  const lasted = index => (lastedLow[index] + lastedHigh[index] * 4294967296) / 1e9;

  const packed = at("blocks").textContent.split("\n"), blocks = new Map();
  at("blocks").remove();
  function block(number) { // a promise of the wordings of a block; the last few are kept
    if (!blocks.has(number)) {
      if (blocks.size >= KEPT) blocks.delete(blocks.keys().next().value);
      const kept = { lines: null };
      kept.coming = inflated(packed[number]).text().then(text => kept.lines = text.split("\n"));
      blocks.set(number, kept);
    }
    return blocks.get(number).coming;
  }
  async function words(index) {
    const said = saidOf[index], lines = await block(Math.floor(said / about.block));
    const [title, short, fields] = JSON.parse(lines[said % about.block]);
    return { title, short, fields };
  }
  function wordsAtHand(index) { // null: they are not yet, and come with the next drawing
    const said = saidOf[index], number = Math.floor(said / about.block);
    if (blocks.get(number)?.lines) return JSON.parse(blocks.get(number).lines[said % about.block]);
    block(number).then(arrived);
    return null;
  }
  async function saidWith(wanted) { // of everything that is said: 1 where it has all these words, in small letters
    const found = new Uint8Array(packed.length * about.block);
    for (let number = 0; number < packed.length && packed[number]; number++) {
      const lines = (await inflated(packed[number]).text()).toLowerCase().split("\n");
      lines.forEach((line, place) => { if (wanted.every(word => line.includes(word))) found[number * about.block + place] = 1; });
    }
    return found;
  }
  return { count, when, lasted, rowOf, saidOf, kindOf, recordOf, answerOf, words, wordsAtHand, saidWith };
}
