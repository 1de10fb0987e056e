// What tests ask a page about: where an event is drawn, and how much colours stand out.

// The middle of the place of an event in the row of this name, in the coordinates of the browser's window.
function placeOf(row, moment) {
  const canvas = document.querySelector("#canvas"), scroller = document.querySelector("#scroller");
  document.querySelector("#timeline").scrollIntoView({ behavior: "instant" });
  const line = [...document.querySelectorAll("#names > *")].findIndex(name => name.textContent === row);
  const { from, until } = document.querySelector("#window").dataset, box = canvas.getBoundingClientRect();
  const x = box.left + (moment - from) / (until - from) * box.width;
  return [x, box.top + line * 20 + 10 - scroller.scrollTop];
}

// How many colours the timeline has.
function coloursDrawn() {
  const canvas = document.querySelector("#canvas");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size;
}

// The ratio of a colour to the grounds that it is seen on, the least of them (WCAG 2.2, relative luminance).
function contrast(name) {
  const context = document.createElement("canvas").getContext("2d"), style = getComputedStyle(document.documentElement);
  const light = colour => {
    context.fillStyle = style.getPropertyValue("--" + colour);
    context.fillRect(0, 0, 1, 1);
    const parts = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map(part => part / 255);
    const linear = parts.map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const ratio = (one, other) => (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  return Math.min(...["ground", "shade"].map(ground => ratio(light(name), light(ground))));
}

// What can be used, and has no name that a screen reader could say.
function nameless() {
  const named = element => element.textContent.trim() || element.labels?.length || element.getAttribute("aria-label");
  const used = [...document.querySelectorAll("button, input, summary, [role=img], [role=group], [role=toolbar]")];
  return used.filter(element => !element.hidden && !named(element)).map(element => element.outerHTML);
}
