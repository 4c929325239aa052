"use strict";
// One sound at a time.
const playable = [];
function alone(audio) {
  playable.push(audio);
  audio.addEventListener("play", () => playable.forEach((other) => other !== audio && other.pause()));
}
document.querySelectorAll("audio").forEach(alone);
