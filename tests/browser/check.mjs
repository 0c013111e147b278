// Open pages offline in Chromium, in light and dark, wide and narrow, and print what is wrong with them as JSON.
//
// node check.mjs MODULES CHROMIUM FILE...

import {readFileSync} from "node:fs";
import {createRequire} from "node:module";
import {join} from "node:path";
import {pathToFileURL} from "node:url";

const [modules, executablePath, ...files] = process.argv.slice(2);
const {chromium} = createRequire(join(modules, "/"))("playwright-core");
const axe = readFileSync(join(modules, "node_modules/axe-core/axe.min.js"), "utf8");
const root = process.getuid?.() === 0 ? ["--no-sandbox"] : [];
const browser = await chromium.launch({executablePath, args: [...root, "--disable-gpu", "--disable-background-networking"]});
const found = [];

// What the page is like, asked from inside it.
const look = async () => {
  const settled = (element, good, bad) => new Promise(done => {
    element.addEventListener(good, done, {once: true});
    element.addEventListener(bad, done, {once: true});
    setTimeout(done, 5000);
  });
  const audio = [];
  for (const element of document.querySelectorAll("audio")) {
    if (element.readyState < 1) await Promise.all([settled(element, "loadedmetadata", "error"), element.load()]);
    element.muted = true;
    const from = element.currentTime;
    const failed = await element.play().then(() => "", error => error.message);
    await new Promise(done => setTimeout(done, 250));
    element.pause();
    audio.push({duration: element.duration, played: element.currentTime - from, failed, label: element.ariaLabel});
  }
  return {
    audio,
    broken: [...document.images].filter(image => !image.naturalWidth).map(image => image.src),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    small: [...document.querySelectorAll("main *")]
      .filter(element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
      .filter(element => element.tagName !== "SCRIPT" && parseFloat(getComputedStyle(element).fontSize) < 12)
      .map(element => element.outerHTML.slice(0, 100)),
    charts: document.querySelectorAll("figure.chart svg").length,
  };
};

// What would be wrong on paper, where the page is looked at as it is printed.
const printed = () => {
  const style = element => getComputedStyle(element);
  return [
    ...[...document.querySelectorAll("nav, audio")].filter(element => style(element).display !== "none"),
    ...[...document.querySelectorAll("figure, table")].filter(element => style(element).breakInside !== "avoid"),
    ...[...document.querySelectorAll("h2, h3")].filter(element => style(element).breakAfter !== "avoid"),
    ...[document.body].filter(element => style(element).backgroundColor !== "rgb(255, 255, 255)"),
  ].map(element => element.outerHTML.slice(0, 100));
};

// What the cursor reads in the first chart: before, inside, and after.
const read = async page => {
  const plot = page.locator("figure.chart .plot").first();
  if (!await plot.count()) return null;
  const legend = () => page.locator("figure.chart .legend").first().innerText();
  await plot.scrollIntoViewIfNeeded();
  const box = await plot.boundingBox(), before = await legend();
  await page.mouse.move(box.x + 0.02 * box.width, box.y + 0.5 * box.height);
  const inside = await legend();
  await page.mouse.move(1, 1);
  return {before, inside, after: await legend()};
};

for (const file of files) {
  for (const colorScheme of ["light", "dark"]) {
    for (const width of [1280, 390]) {
      const context = await browser.newContext({
        viewport: {width, height: 844}, colorScheme, offline: true, bypassCSP: false, javaScriptEnabled: true,
      });
      const page = await context.newPage(), said = [], asked = [];
      page.on("console", message => said.push(`${message.type()}: ${message.text()}`));
      page.on("pageerror", error => said.push(`error: ${error.message}`));
      page.on("request", request => {
        if (!/^(file|data):/.test(request.url())) asked.push(request.url());
      });
      const began = performance.now();
      await page.goto(pathToFileURL(file).href);
      await page.evaluate(() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))));
      const opened = performance.now() - began, cursor = await read(page), seen = await page.evaluate(look);
      await page.evaluate(() => document.querySelectorAll("details").forEach(each => { each.open = true; }));
      await page.evaluate(axe);
      const {violations} = await page.evaluate(() => window.axe.run());
      await page.emulateMedia({media: "print", colorScheme});
      const paper = await page.evaluate(printed);
      found.push({
        file, colorScheme, width, opened, said, asked, cursor, paper, ...seen,
        violations: violations.map(each => `${each.id}: ${each.help}: ${each.nodes.slice(0, 3).map(node => node.html.slice(0, 160)).join(" | ")}`),
      });
      await context.close();
    }
  }
}
await browser.close();
console.log(JSON.stringify(found));
