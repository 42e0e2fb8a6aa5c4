-- A login, and all that comes of it: its refresh tokens are good as long as its row is here.

CREATE TABLE fanfare_sessions (
    family TEXT PRIMARY KEY,
    email TEXT NOT NULL,
    sid TEXT NOT NULL,
    began_at BIGINT NOT NULL,
    renewed_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    access_expires_at BIGINT NOT NULL,
    salt TEXT NOT NULL
);

CREATE INDEX fanfare_sessions_by_email ON fanfare_sessions (email);

CREATE INDEX fanfare_sessions_by_sid ON fanfare_sessions (sid);

-- When they began was not kept: they count as older than any revocation.
INSERT INTO fanfare_sessions (family, email, sid, began_at, renewed_at, expires_at, access_expires_at, salt)
SELECT family, email, '', 0, 0, MAX(expires_at), 0, '' FROM fanfare_refresh_tokens GROUP BY family, email;
