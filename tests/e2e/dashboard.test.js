// The dashboard, for administrators and for other users.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { DEADLINE, Hub, LivePage, ROOT, browser, until } from "./fanfare.js";

const SCREENSHOTS = join(ROOT, "target/screenshots");
let chromium;

before(async () => { chromium = await browser(); });
after(() => chromium?.close());

async function open(hub, token) {
  const page = await chromium.newPage();
  page.wrong = [];
  page.on("pageerror", (error) => page.wrong.push(error.message));
  page.on("console", (message) => { if (message.type() === "error") page.wrong.push(message.text()); });
  page.setDefaultTimeout(DEADLINE);
  await page.goto(`${hub.origin}/dashboard#token=${token}`);
  return page;
}

const tile = (page, name) => page.locator("#tiles div", { hasText: name }).locator("dd").textContent();

test("an administrator sees nodes, events and clients, and can look up and disconnect a client", async () => {
  const hub = await Hub.start();
  try {
    const client = await LivePage.open(chromium, hub.pageUrl());
    await client.state("live");
    const admin = await hub.mint("--sub", "ops", "--admin");
    const page = await open(hub, admin);
    await page.locator("body[data-state=live]").waitFor();
    assert.equal(new URL(page.url()).hash, "", "the token is gone from the address bar");
    await page.locator("#nodes button").waitFor();
    assert.equal(await tile(page, "Connections"), "2");
    assert.equal(await tile(page, "Nodes"), "1");

    await hub.publish({ type: "note", event_id: "seen", data: {} });
    await client.event("seen");
    await page.locator("#tail button", { hasText: "seen" }).click();
    await page.locator("#found h3", { hasText: "seen" }).waitFor();
    const found = await page.locator("#found").textContent();
    assert.match(found, /user:demo/);
    assert.match(found, /everyone/);
    // The event was written to two clients: the dashboard is one of them.
    assert.equal(await page.locator("#found td").nth(3).textContent(), "2");

    await page.fill("#asked", "user:demo");
    await page.click("#search button");
    await page.locator("#found h3", { hasText: "demo" }).waitFor();
    const connection = await client.text("connection-id");
    await page.locator("#found button", { hasText: connection }).click();
    await page.locator("#found h3", { hasText: connection }).waitFor();
    assert.match(await page.locator("#found").textContent(), /at the head/);
    page.on("dialog", (dialog) => dialog.accept());
    await page.locator("#found button", { hasText: "Disconnect" }).click();
    await client.state("refused");
    await page.locator("#limits td", { hasText: "closed with 4003" }).waitFor();
    await until(async () => {
      await page.fill("#asked", connection);
      await page.click("#search button");
      return (await page.locator("#found").textContent()).includes("with 4003");
    }, () => "how the client was closed");

    mkdirSync(SCREENSHOTS, { recursive: true });
    const devices = [["desktop", 1280, "light"], ["desktop-dark", 1280, "dark"], ["phone", 390, "light"]];
    for (const [name, width, colorScheme] of devices) {
      await page.emulateMedia({ colorScheme });
      await page.setViewportSize({ width, height: 900 });
      const overflow = () => page.evaluate(() => {
        const { scrollWidth, clientWidth } = document.documentElement;
        return scrollWidth - clientWidth;
      });
      await until(async () => await overflow() === 0, async () => `${await overflow()} pixels of overflow at ${width}`);
      await page.screenshot({ path: join(SCREENSHOTS, `dashboard-${name}.png`), fullPage: true });
    }
    assert.deepEqual(page.wrong, []);
    await page.close();
    await client.close();
  } finally {
    await hub.end();
  }
});

test("other users are asked for an administrator's token", async () => {
  const hub = await Hub.start();
  try {
    const page = await open(hub, hub.token);
    await page.locator("#login:not([hidden])").waitFor();
    const explained = async () => (await page.locator("#reason").textContent()).includes("administrator");
    await until(explained, () => "the reason");
    await page.fill("#token", await hub.mint("--sub", "ops", "--admin"));
    await page.click("#token-form button");
    await page.locator("#nodes button").waitFor();
    await page.close();
  } finally {
    await hub.end();
  }
});
