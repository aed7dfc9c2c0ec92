import { Injectable } from '@nestjs/common';
import { SendMessageCommand, SQSClient } from '@aws-sdk/client-sqs';
import type {
  AnalysisFields,
  DuplicateFields,
  Envelope,
  HashFields,
  MixFields,
} from './waveflow.types';

/** Queues jobs. Each method returns the job's id. */
@Injectable()
export class WaveflowClient {
  // Region, endpoint and credentials come from the environment (AWS_REGION, AWS_ENDPOINT_URL).
  private readonly sqs = new SQSClient({});
  private readonly queueUrl = process.env.SQS_QUEUE_URL;

  hash(fields: HashFields): Promise<string> {
    return this.send('app.tasks.generate_hash_and_webhook', `hash-${fields.stemId}`, fields);
  }

  duplicate(fields: DuplicateFields): Promise<string> {
    return this.send('app.tasks.process_duplicate_file', `duplicate-${fields.stemId}`, fields);
  }

  analyse(fields: AnalysisFields): Promise<string> {
    return this.send('app.tasks.process_audio_analysis', `analysis-${fields.stemId}`, fields);
  }

  mix(fields: MixFields): Promise<string> {
    return this.send('app.tasks.mix_stems_and_upload', `mixing-${fields.stageId}`, fields);
  }

  private async send<Fields>(task: string, name: string, kwargs: Fields): Promise<string> {
    const id = `${name}-${Date.now()}`;
    const envelope: Envelope<Fields> = { task, id, args: [], kwargs };
    await this.sqs.send(
      new SendMessageCommand({ QueueUrl: this.queueUrl, MessageBody: JSON.stringify(envelope) }),
    );
    return id;
  }
}
